"""The activation cache in any training loop: rows are recognized by what the model is called with.

    B rows, T tokens, d hidden width

1. A call brings rows. Each has a key, a hash of what the bottom reads of it, without padding.
2. Where the states of all of them are known, they are fed, and the bottom does not run.
3. Otherwise the bottom runs, and the states that it returns are stored. So the first epoch fills the cache.

Two checks replace what a trainer would know. The outputs of a call, and the gradients behind them, are compared with
and without the bottom: at the first call that is fed, and again while training runs. And a loss that reads outputs at
padding shows by its gradient there: what padding becomes depends on the rows beside it, so nothing is fed then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._below import hook_below
from frostline.bottom._bottom import Bottom, Declined, NotNeeded, Training
from frostline.bottom._cache import check_room
from frostline.bottom._caching_pass import caching_pass
from frostline.bottom._calls import Call, autocast_dtype, recognized
from frostline.bottom._cut import CannotCut, last_blocks
from frostline.bottom._feed import States
from frostline.bottom._filling import FillingCache
from frostline.bottom._outputs import summed, watch_padding
from frostline.bottom._report import CacheReport
from frostline.bottom._rows import Features, cut_out
from frostline.bottom._standins import StandIns
from frostline.bottom._weights import OffloadedWeights
from frostline.core.cache import default_root
from frostline.core.errors import ConfigError
from frostline.hooks import (
    OTHER_BATCH,
    STORED_IN_FEWER_BITS,
    Override,
    Rechecks,
    compare_training,
    hidden_of,
)

Collate = Callable[[Sequence[Features]], Mapping[str, Any]]
Progress = Callable[[int, int], None]

_FED_IN_A_ROW = 16
"""After so many calls in a row without the bottom, its weights leave memory."""


@dataclass(frozen=True)
class _Open:
    """A cache that is open, and the bottom whose states it holds, for one precision."""

    bottom: Bottom
    cache: FillingCache


class LoopSession:
    """Uses the activation cache in a training loop of any kind, from `begin` to `end`.

    Attributes:
        report: what the cache did.

    Args:
        training: the model and its plan. Data sets, collator and loss are not used.
        required: raise an error where the cache is not possible (`activation_cache="on"`).
        store: store the states of rows that are not known yet.
        limit: bytes that all caches together may use on disk; None: only the disk limits them.
        root: the folder in which all caches lie; None: the default one.
        caches: the caches that are open, by folder: models with the same bottom share one.
        changed: called when the report changes.
    """

    def __init__(
        self,
        training: Training,
        *,
        required: bool = False,
        store: bool = True,
        limit: int | None = None,
        root: Path | None = None,
        caches: dict[Path, FillingCache] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._training, self._required, self._store, self._limit = training, required, store, limit
        self._root = root or default_root()
        self._caches = {} if caches is None else caches
        self._changed = changed
        self.report = CacheReport(reason="activation_cache: not begun")
        self._standins: StandIns | None = None
        self._weights: OffloadedWeights | None = None
        self._hooks: list[Any] = []
        self._forward: Override | None = None
        self._by_precision: dict[torch.dtype | None, _Open] = {}
        self._call: Call | None = None
        self._returned: dict[str, Tensor] = {}
        self._computed_in: torch.dtype | None = None
        self._held = self._checked = False
        self._reads_padding: str | None = None
        self._fed = self._in_a_row = 0
        self._begun = time.perf_counter()

    def __reduce__(self) -> Any:
        """A copy of the model (a running average, a pickle) runs its own bottom. It gets a session that is off."""
        return _off, ()

    @property
    def active(self) -> bool:
        """Whether rows are recognized."""
        return self._standins is not None

    def begin(self) -> None:
        """Begin to recognise rows. Raises `ConfigError` where the cache is required and not possible."""
        if self.active:
            return
        model = self._training.model
        try:
            bottom = self._bottom = Bottom(self._training, None, self._root)
        except (Declined, CannotCut) as error:
            if self._required:
                raise ConfigError(f"activation_cache: on, but {error}: use activation_cache=auto or off") from None
            declined = not isinstance(error, NotNeeded)
            self._report(used=False, reason=str(error), declined=declined)
            return
        self._standins = StandIns(model, bottom.cut, self._before_own)
        self._weights = OffloadedWeights(model, self._standins, self._root)
        blocks = last_blocks(bottom.cut).items()
        self._hooks = [
            model.get_submodule(name).register_forward_hook(partial(self._keep, stream)) for stream, name in blocks
        ]
        self._forward = Override(model, self._run)  # not a hook: some loops call `forward` itself
        self._rechecks = Rechecks(model)
        self._report(used=True, reason="on: rows are stored when they are seen first", declined=False)

    def fill(self, rows: Iterable[Features], collate: Collate, progress: Progress = lambda done, rows: None) -> None:
        """Let rows go through the bottom now, those of like length together, in the autocast of this moment.

        Args:
            rows: tokenized rows.
            collate: makes a batch of them.
            progress: called with the number of rows that are done, and that of all.
        """
        if not self.active:
            return
        device = self._training.device
        self._computed_in = autocast_dtype(device)
        known = self._by_precision[self._computed_in] = self._open(device, collate)
        bottom, cache = known.bottom, known.cache.cache
        every = {bottom.key(row): row for row in rows}
        missing = {key: every[key] for key in cache.missing(every)}
        size = sum(bottom.bytes_of(row) for row in missing.values())
        check_room(self._root, size, self._limit)
        with self.paused(), cache.lock():
            missing = {key: missing[key] for key in cache.missing(missing)}  # another process may have filled it
            blocks = last_blocks(bottom.cut)
            caching_pass(
                self._training.model,
                blocks,
                bottom.passage,
                missing,
                cache,
                progress=lambda done: progress(done, len(missing)),
            )
        known.cache.written += len(missing)
        known.cache.bytes += size
        self._count()

    def end(self) -> None:
        """Stop, bring the bottom back to memory, and write what is not written yet."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._forward is not None:
            self._forward.remove()
        if self._standins is not None:
            self._standins.remove()
        if self._weights is not None:
            self._weights.restore()
        self._standins = self._weights = self._call = None
        self._returned, self._by_precision, self._checked = {}, {}, False
        for cache in self._caches.values():
            cache.flush()
        if self.report.used:
            self._count()

    def give_up(self, reason: str) -> None:
        """Run the bottom itself from now on. `reason` is reported."""
        self.end()
        self._report(given_up=reason)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context calls are not looked at, and the bottom runs."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    # A call of the model.

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        assert self._forward is not None
        if self._held or self._standins is None:
            return self._forward.own(*args, **kwargs)
        output = None
        try:
            self._before_pass(self._training.model, args, kwargs)
            output = self._forward.own(*args, **kwargs)
        finally:
            self._after_pass(output)
        return output

    def _before_pass(self, model: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        assert self._forward is not None and self._standins is not None
        self._call, self._returned = None, {}
        if self._reads_padding is not None:
            self.give_up(self._reads_padding)
            return
        call = recognized(self._bottom, self._forward.by_name(args, kwargs))
        if call is None:
            self._unknown(model)
            return
        known = self._by_precision.get(call.precision)
        states = None if known is None else known.cache.read(call.rows)
        if states is None:
            self._call = call
            if not self._stores(known):
                self._unknown(model)
            return
        if not self._same(call, states, args, kwargs):
            return
        if model.training and torch.is_grad_enabled():
            self._in_a_row += 1
            if self._in_a_row > _FED_IN_A_ROW and self._weights is not None and not self._weights.offloaded:
                self._report(freed_bytes=self._weights.offload())
        self._standins.feed(self._on_device(states))

    def _after_pass(self, output: Any) -> None:
        if self._standins is None:
            return
        self._standins.clear()
        call, self._call = self._call, None
        if call is None or output is None:
            return
        if torch.is_grad_enabled():
            self._watch_padding(output, call)
        shapes = {stream: tuple(hidden.shape[:2]) for stream, hidden in self._returned.items()}
        if self._stores(self._by_precision.get(call.precision)) and shapes == dict(call.rows.shapes):
            self._remember(call)

    def _stores(self, known: _Open | None) -> bool:
        return self._store and (known is None or known.cache.full is None)

    def _keep(self, stream: str, _block: Any, _args: Any, output: Any) -> None:
        """Keep what the last block below the boundary returns, where its rows are to be stored."""
        if self._call is not None and not self._held:
            hidden = hidden_of(output).detach()
            self._returned[stream] = hidden
            self._computed_in = autocast_dtype(hidden.device)

    def _remember(self, call: Call) -> None:
        returned, self._returned = self._returned, {}
        known = self._by_precision.get(call.precision)
        if known is None:
            known = self._by_precision[call.precision] = self._open(next(iter(returned.values())).device)
        dtypes = known.bottom.passage.dtypes
        parts = {
            stream: cut_out(hidden.to("cpu", dtypes[stream]), call.rows.spans[stream])
            for stream, hidden in returned.items()
        }
        known.cache.add({key: {s: own[i].clone() for s, own in parts.items()} for i, key in enumerate(call.rows.keys)})
        self._count()

    def _open(self, device: torch.device, collate: Collate | None = None) -> _Open:
        """The cache for the precision in which the bottom has just computed."""
        training = replace(self._training, autocast=self._computed_in, device=device)
        if collate is not None:
            training = replace(training, collate=collate)
        with self.paused():  # it runs the model
            bottom = Bottom(training, None, self._root)
        found = bottom.cache
        return _Open(bottom, self._caches.setdefault(found.folder, FillingCache(found, self._root, self._limit)))

    def _before_own(self) -> None:
        self._in_a_row = 0
        if self._weights is not None and self._weights.offloaded and self._training.device.type != "cpu":
            self._weights.restore()

    # Checks.

    def _same(self, call: Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether this call may be fed. Gives the cache up where a comparison that is due shows a difference."""
        due = not self._checked or self._rechecks.due(self._fed, time.perf_counter() - self._begun)
        if due:
            with self._rechecks.timed():
                found = hook_below(self._training.model, self._bottom.cut)
                found = found or self._difference(call, states, args, kwargs)
            if found is not None:
                since = f" since call {self._fed + 1}" if self._checked else ""
                self.give_up(f"off{since}: {found}")
                return False
            self._checked = True
        self._fed += 1
        return True

    def _difference(self, call: Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> str | None:
        """Say in one line how outputs or gradients of a call differ when stored states are fed; None if they do not."""
        model, standins, forward = self._training.model, self._standins, self._forward
        assert standins is not None and forward is not None

        def outputs(fed: bool) -> Tensor:
            if fed:
                standins.feed(self._on_device(states))
            try:
                return summed(forward.own(*args, **kwargs), call.real)
            finally:
                standins.clear()

        stored = next(iter(states.values())).dtype
        tolerance = OTHER_BATCH if stored == torch.float32 and call.precision is None else STORED_IN_FEWER_BITS
        with self.paused():
            found = compare_training(
                model, partial(outputs, False), partial(outputs, True), tolerance, training=model.training
            )
        return None if found is None else f"a call with stored states is not the same as without: {found}"

    def _watch_padding(self, output: Any, call: Call) -> None:
        """Learn from the backward pass whether the loss reads outputs at padding."""

        def found() -> None:
            self._reads_padding = "off: the loss reads outputs at padding, which depend on the rows of the batch"

        if call.real is not None:
            watch_padding(output, call.real, found)

    # What is reported.

    def _on_device(self, states: States) -> dict[str, Tensor]:
        device = self._training.device
        return {name: value.to(device, non_blocking=True) for name, value in states.items()}

    def _unknown(self, model: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self.report = replace(self.report, computed=self.report.computed + 1)

    def _count(self) -> None:
        caches = self._caches.values()
        full = next((cache.full for cache in caches if cache.full is not None), None)
        written, size = sum(cache.written for cache in caches), sum(cache.bytes for cache in caches)
        room = "" if full is None else f"; no more are stored: {full}"
        reason = f"on: {written:,} rows were stored, {self._fed:,} calls did not run the bottom{room}"
        self.report = replace(self.report, rows=written, bytes=size, reason=reason)

    def _report(self, **changes: Any) -> None:
        self.report = replace(self.report, **changes)
        self._changed()


def _off() -> LoopSession:
    session = LoopSession.__new__(LoopSession)
    session._standins, session._call, session._held = None, None, True
    return session
