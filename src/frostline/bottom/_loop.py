"""The activation cache in any training loop: rows are recognized by what the model is called with.

B rows, T tokens, d hidden width

1. A call brings rows. Each has a key, a hash of what the bottom reads of it, without padding.
2. Where the states of all of them are known, they are fed, and the bottom does not run.
3. Otherwise the bottom runs, and the states that it returns are stored. So the first epoch fills the cache.

Checks replace what a trainer would know:

- The outputs of a call, and the gradients behind them, are compared with and without the bottom: at the first fed call
  of each kind (in train mode or not, packed, with other arguments, at other places than when stored), and again later.
- A loss that reads outputs at padding shows by its gradient there: what padding becomes depends on the rows beside it.
  So no call with padding is fed before a backward pass has shown that its loss does not.
- The states of a row must not depend on its place: they are computed at other places once, and compared.
- The modules and weights of the bottom are looked at before each call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._below import hook_below
from frostline.bottom._bottom import REENTRANT, Bottom, Declined, NotNeeded, Training, not_possible
from frostline.bottom._calls import Call, Calls, autocast_dtype
from frostline.bottom._cut import CannotCut, last_blocks
from frostline.bottom._feed import States
from frostline.bottom._filling import Collate, FillingCache, OpenCache, Progress, stored
from frostline.bottom._identity import names_below
from frostline.bottom._report import CacheReport
from frostline.bottom._rows import Features, of_rows
from frostline.bottom._standins import StandIns
from frostline.bottom._watch import BottomWatch
from frostline.bottom._weights import OffloadedWeights
from frostline.core.cache import asked_root
from frostline.core.errors import FrostlineError, first_line
from frostline.hooks import (
    OTHER_BATCH,
    STORED_IN_FEWER_BITS,
    Override,
    PaddingWatch,
    Rechecks,
    checkpoints_reentrantly,
    compare_training,
    hidden_of,
    summed,
)

_FED_IN_A_ROW = 16  # after so many calls in a row without the bottom, its weights leave memory


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
        self._root = root or asked_root()
        self._caches = {} if caches is None else caches
        self._changed = changed
        self.report = CacheReport(reason="activation_cache: not begun")
        self._one_call = threading.RLock()  # what is fed is for the call of one thread
        self._standins: StandIns | None = None
        self._weights: OffloadedWeights | None = None
        self._hooks: list[Any] = []
        self._forward: Override | None = None
        self._by_precision: dict[torch.dtype | None, OpenCache] = {}
        self._call: Call | None = None
        self._returned: dict[str, Tensor] = {}
        self._computed_in: torch.dtype | None = None
        self._held = self._due = False
        self._padding = PaddingWatch()
        self._kinds: dict[Any, bool] = {}  # what was compared -> whether such calls are fed
        self._places: dict[str, Any] = {}  # where rows stood when they were stored
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
        """Begin to recognize rows. Raises `ConfigError` where the cache is required and not possible."""
        if self.active:
            return
        model = self._training.model
        try:
            bottom = self._bottom = Bottom(self._training, None, self._root)
        except (Declined, CannotCut) as error:
            if self._required:
                raise not_possible(error) from None
            self._report(used=False, reason=str(error), declined=not isinstance(error, NotNeeded))
            return
        self._calls = Calls(bottom, self.paused)
        self._watch = BottomWatch(model, bottom.cut, names_below(self._training.anatomy, bottom.cut))
        self._standins = StandIns(model, bottom.cut, self._before_own)
        self._weights = OffloadedWeights(model, self._standins, self._root)
        self._hooks = [
            model.get_submodule(name).register_forward_hook(partial(self._keep, stream))
            for stream, name in last_blocks(bottom.cut).items()
        ]
        self._forward = Override(model, self._run)  # not a hook: some loops call `forward` itself
        self._rechecks = Rechecks(model)
        self._report(used=True, reason="on: rows are stored when they are seen first", declined=False)

    def follow(self, training: Training) -> bool:
        """Go on under another plan if that changes no states, and say whether that is so."""
        if right := self.active and self._bottom.is_right_for(training):
            self._training = training
            self._rechecks.note()
        return right

    def fill(self, rows: Iterable[Features], collate: Collate, progress: Progress = lambda done, rows: None) -> None:
        """Let rows go through the bottom now, those of like length together, in the autocast of this moment.

        Args:
            rows: tokenized rows.
            collate: makes a batch of them.
            progress: called with the number of rows that are done, and that of all.

        Raises as `FillingCache.fill` does.
        """
        if not self.active:
            return
        device = self._training.device
        self._computed_in = autocast_dtype(device)
        known = self._by_precision[self._computed_in] = self._open(device, collate)
        with self.paused():
            known.cache.fill(self._training.model, known.bottom, rows, self._calls.keys_of, progress)
        self._count()

    def end(self, keep: bool = True) -> None:
        """Stop, bring the bottom back to memory, and write what is not written yet, if it is to be kept."""
        for replaced in (*self._hooks, self._forward, self._standins):
            if replaced is not None:
                replaced.remove()
        self._hooks = []
        if self._weights is not None:
            self._weights.restore()
        self._standins = self._weights = self._call = None
        self._returned, self._by_precision = {}, {}
        self._kinds, self._padding = {}, PaddingWatch()
        for cache in self._caches.values():
            cache.flush() if keep else cache.forget()
        if self.report.used:
            self._count()

    def give_up(self, reason: str) -> None:
        """Run the bottom itself from now on. `reason` is reported."""
        self.end(keep=False)
        self._report(given_up=reason, **({} if self._fed else {"used": False, "reason": reason}))

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
        with self._one_call:
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
        if self._padding.read is not None:
            self.give_up(self._padding.read)
            return
        if (changed := self._change_below()) is not None:
            self.give_up(f"off since call {self._fed + 1}: {changed}")
            return
        call = self._calls.recognized(self._forward.by_name(args, kwargs))
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
        if torch.is_grad_enabled() and call.padded and not self._padding.unread:
            self._call = call  # its backward pass will show whether the loss reads padding
            return
        if not self._same(call, states, args, kwargs):
            return
        if self._due:
            self._call = call
        if model.training and torch.is_grad_enabled():
            self._in_a_row += 1
            if self._in_a_row > _FED_IN_A_ROW and self._weights is not None and not self._weights.offloaded:
                self._free()
        self._standins.feed(self._on_device(states))

    def _free(self) -> None:
        """Take the weights of the bottom out of memory, if there is room for them elsewhere."""
        assert self._weights is not None
        try:
            self._report(freed_bytes=self._weights.offload())
        except (FrostlineError, OSError):
            self._weights = None  # they are all in memory, and stay there
        self._watch.note()

    def _change_below(self) -> str | None:
        """Say in one line what has changed below the boundary, or makes gradients need it; None where nothing has."""
        if torch.is_grad_enabled() and self._training.model.training and checkpoints_reentrantly(self._training.model):
            return REENTRANT
        if (found := self._watch.change()) is not None:
            return found
        if self._watch.written:
            for known in self._by_precision.values():
                with self.paused():
                    found = known.bottom.change()
                if found is not None:
                    return found
            self._watch.note()
        return None

    def _after_pass(self, output: Any) -> None:
        if self._standins is None:
            return
        self._standins.clear()
        call, self._call = self._call, None
        if call is None or output is None:
            return
        if torch.is_grad_enabled() and call.padded:
            self._padding.watch(output, call.real_of(self._training.model.config), bool(self._returned))
        shapes = {stream: tuple(hidden.shape[:2]) for stream, hidden in self._returned.items()}
        if self._stores(self._by_precision.get(call.precision)) and shapes == dict(call.rows.shapes):
            self._remember(call)

    def _stores(self, known: OpenCache | None) -> bool:
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
            try:
                known = self._by_precision[call.precision] = self._open(next(iter(returned.values())).device)
            except (FrostlineError, OSError, ValueError) as error:
                self.give_up(f"off: {first_line(error)}")
                return
        self._places |= zip(call.rows.keys, call.places, strict=True)
        dtypes = known.bottom.passage.dtypes
        known.cache.add(of_rows(returned, call.rows.keys, call.rows.spans, dtypes))
        self._count()

    def _open(self, device: torch.device, collate: Collate | None = None) -> OpenCache:
        """The cache for the precision in which the bottom has just computed."""
        training = replace(self._training, autocast=self._computed_in, device=device)
        if collate is not None:
            training = replace(training, collate=collate)
        with self.paused():  # it runs the model
            bottom = Bottom(training, None, self._root)
        found = bottom.cache
        return OpenCache(bottom, self._caches.setdefault(found.folder, FillingCache(found, self._root, self._limit)))

    def _before_own(self) -> None:
        self._in_a_row = 0
        if self._weights is not None and self._weights.offloaded and self._training.device.type != "cpu":
            self._weights.restore()
            self._watch.note()

    # Checks.

    def _same(self, call: Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether this call may be fed. Gives the cache up where a comparison that is due shows a difference."""
        model = self._training.model
        moved = any(self._places.get(key) != place for key, place in zip(call.rows.keys, call.places, strict=True))
        kind = (model.training, torch.is_grad_enabled(), call.precision, call.asked, call.padded, moved)
        self._due = kind not in self._kinds or self._rechecks.due(self._fed, time.perf_counter() - self._begun)
        if self._due:
            with self._rechecks.timed():
                found = hook_below(model, self._bottom.cut)
                fed = True
                if found is None:
                    found, fed = self._difference(call, states, args, kwargs)
            if found is not None:
                since = f" since call {self._fed + 1}" if self._kinds else ""
                self.give_up(f"off{since}: {found}")
                return False
            self._kinds[kind] = fed
        self._fed += self._kinds[kind]
        return self._kinds[kind]

    def _difference(self, call: Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> tuple[str | None, bool]:
        """How outputs or gradients of a call differ when stored states are fed, in one line; None if they do not.

        And whether such calls are to be fed: not where the keys and values of all blocks may be what is asked for.
        """
        model, standins, forward = self._training.model, self._standins, self._forward
        assert standins is not None and forward is not None
        grad = torch.is_grad_enabled()
        decodes = False

        def outputs(fed: bool) -> Tensor:
            nonlocal decodes
            if fed:
                standins.feed(self._on_device(states))
            try:
                with torch.set_grad_enabled(grad):
                    output = forward.own(*args, **kwargs)
                decodes = decodes or getattr(output, "past_key_values", None) is not None
                return summed(output, call.real_of(model.config))
            finally:
                standins.clear()

        dtype = next(iter(states.values())).dtype
        tolerance = OTHER_BATCH if dtype == torch.float32 and call.precision is None else STORED_IN_FEWER_BITS
        with self.paused():
            found = compare_training(
                model, partial(outputs, False), partial(outputs, True), tolerance, training=model.training
            )
        if decodes and not grad and "labels" not in call.asked:
            return None, False
        return (None if found is None else f"a call with stored states is not the same as without: {found}"), True

    # What is reported.

    def _on_device(self, states: States) -> dict[str, Tensor]:
        device = self._training.device
        return {name: value.to(device, non_blocking=True) for name, value in states.items()}

    def _unknown(self, model: Any) -> None:
        if model.training and torch.is_grad_enabled():
            self._report(computed=self.report.computed + 1)

    def _count(self) -> None:
        written, size, reason = stored(self._caches.values(), self._fed)
        self._report(rows=written, bytes=size, reason=reason)

    def _report(self, **changes: Any) -> None:
        self.report = replace(self.report, **changes)
        self._changed()


def _off() -> LoopSession:
    session = LoopSession.__new__(LoopSession)
    session._standins, session._call, session._held = None, None, True
    return session
