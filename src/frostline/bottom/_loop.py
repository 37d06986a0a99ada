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
- The states of a row must not depend on its place. They are computed at other places once, and compared.
- The modules and weights of the bottom are looked at before each call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from frostline.bottom._below import hook_below
from frostline.bottom._bottom import NOT_READ_BELOW, REENTRANT, Bottom, Declined, NotNeeded, Training
from frostline.bottom._cache import check_room
from frostline.bottom._caching_pass import caching_pass, same_states
from frostline.bottom._cut import CannotCut, last_blocks
from frostline.bottom._feed import ASKS_BELOW, BRINGS_STATES, RowsInBatch, States, rows_of
from frostline.bottom._filling import FillingCache
from frostline.bottom._identity import names_below
from frostline.bottom._report import CacheReport
from frostline.bottom._rows import Features, cut_out, spans_in
from frostline.bottom._standins import StandIns
from frostline.bottom._watch import BottomWatch
from frostline.bottom._weights import OffloadedWeights
from frostline.core.cache import default_root
from frostline.core.errors import ConfigError, DataError, FrostlineError, first_line
from frostline.core.labels import IGNORED
from frostline.hooks import (
    OTHER_BATCH,
    STORED_IN_FEWER_BITS,
    Override,
    Rechecks,
    capture,
    checkpoints_reentrantly,
    compare_training,
    evaluation_mode,
    generators_kept,
    hidden_of,
    packed_starts,
    says_how_packed,
)

Collate = Callable[[Sequence[Features]], Mapping[str, Any]]
Progress = Callable[[int, int], None]

_FED_IN_A_ROW = 16
"""After so many calls in a row without the bottom, its weights leave memory."""


_LENGTHS = ("max_length_q", "max_length_k")
"""Arguments of a packed call that repeat the length of its longest row."""


@dataclass(frozen=True)
class _Call:
    """A call of the model whose rows are known by name.

    Attributes:
        rows: of the call.
        real: which tokens are no padding, [B, T].
        labelled: the same of the decoder, where its rows are among those of the call.
        precision: at which the model is called.
        places: of each row: its line's length, where it begins, and the rows before it that it might see.
        asked: what the call has beside the rows.
    """

    rows: RowsInBatch
    real: Tensor
    labelled: Tensor | None
    precision: torch.dtype | None
    places: tuple[Any, ...]
    asked: frozenset[str]

    @property
    def padded(self) -> bool:
        return not bool(self.real.all()) or (self.labelled is not None and not bool(self.labelled.all()))


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
        self._one_call = threading.RLock()  # what is fed is for the call of one thread
        self._standins: StandIns | None = None
        self._weights: OffloadedWeights | None = None
        self._hooks: list[Any] = []
        self._forward: Override | None = None
        self._by_precision: dict[torch.dtype | None, _Open] = {}
        self._call: _Call | None = None
        self._returned: dict[str, Tensor] = {}
        self._computed_in: torch.dtype | None = None
        self._held = self._padding_unread = False
        self._kinds: dict[Any, bool] = {}  # what was compared -> whether such calls are fed
        self._places: dict[str, Any] = {}  # where rows stood when they were stored
        self._apart: dict[Any, bool] = {}
        self._due = False
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
        self._watch = BottomWatch(model, bottom.cut, names_below(self._training.anatomy, bottom.cut))
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
        if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
            raise ConfigError(
                f"activation_cache: rows are tokenized rows, not {type(rows).__name__}: use a list of them"
            )
        device = self._training.device
        self._computed_in = _autocast(device)
        known = self._by_precision[self._computed_in] = self._open(device, collate)
        bottom, cache = known.bottom, known.cache.cache
        every = {}
        for row in rows:
            if not isinstance(row, Mapping):
                raise ConfigError(
                    f"activation_cache: a row is a dict of tokens, not {type(row).__name__}: tokenize rows"
                )
            every[bottom.key(row)] = row
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
        self._returned, self._by_precision = {}, {}
        self._kinds, self._padding_unread = {}, False
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
        if self._reads_padding is not None:
            self.give_up(self._reads_padding)
            return
        if (changed := self._change_below()) is not None:
            self.give_up(f"off since call {self._fed + 1}: {changed}")
            return
        call = self._recognized(self._forward.by_name(args, kwargs))
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
        if torch.is_grad_enabled() and call.padded and not self._padding_unread:
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
            self._watch_padding(output, call)
        shapes = {stream: tuple(hidden.shape[:2]) for stream, hidden in self._returned.items()}
        if self._stores(self._by_precision.get(call.precision)) and shapes == dict(call.rows.shapes):
            self._remember(call)

    def _recognized(self, batch: Mapping[str, Any]) -> _Call | None:
        """The rows of a call; None where they cannot be told, or the call is not one of plain rows."""
        if any(batch.get(name) for name in ASKS_BELOW) or any(batch.get(name) is not None for name in BRINGS_STATES):
            return None
        names, not_read = self._bottom.names, {*NOT_READ_BELOW, *self._training.label_names}
        decodes = "labels" in names.values()
        given = {name: value for name, value in batch.items() if value is not None}
        read = {name: value for name, value in given.items() if name not in not_read or (decodes and name == "labels")}
        if any(name.startswith("decoder_") for name in read):
            if decodes:
                return None  # the decoder is not called with the labels
            read = {name: value for name, value in read.items() if not name.startswith("decoder_")}
        read = {name: value for name, value in read.items() if name not in _LENGTHS}
        settings = {name: value for name, value in read.items() if isinstance(value, bool | int | float | str)}
        tensors = {name: value for name, value in read.items() if name not in settings}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                return None
            if name not in self._bottom.inputs and not says_how_packed(name, value, batch):
                return None
        try:
            rows = rows_of(tensors, self._bottom.inputs)
            if not rows:
                return None
            keys = tuple(self._bottom.key(row) for row in rows)
        except (DataError, TypeError, ValueError, KeyError):
            return None
        if settings:
            keys = tuple(f"{key} {sorted(settings.items())}" for key in keys)
        return self._placed(keys, given, tensors, frozenset(given))

    def _placed(
        self, keys: tuple[str, ...], given: Mapping[str, Any], tensors: Mapping[str, Any], asked: frozenset[str]
    ) -> _Call | None:
        """The call with rows of these `keys`; None where their places cannot be told, or matter for their states."""
        ids, mask = tensors["input_ids"], tensors.get("attention_mask")
        labels = tensors.get("labels")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        labelled = None if labels is None else labels != IGNORED
        length, starts = ids.shape[1], packed_starts(tensors)
        if starts is not None:
            ends = [*starts[1:], length]
            spans: Tensor | None = torch.tensor([(0, a, b - a) for a, b in zip(starts, ends, strict=True)])
        else:
            spans = spans_in(real)
        found = {"input_ids": spans, "labels": None if labelled is None else spans_in(labelled)}
        by_stream = {stream: found[name] for stream, name in self._bottom.names.items()}
        if spans is None or any(each is None or len(each) != len(keys) for each in by_stream.values()):
            return None
        places = tuple((length, start, keys[:i] if starts else ()) for i, start in enumerate(spans[:, 1].tolist()))
        if starts is not None:
            kind: Any = ("packed", asked, self._training.model.training)
        elif bool((spans[:, 1] > 0).any()) and "position_ids" not in tensors:
            kind = ("moved", asked)
        else:
            kind = None
        if kind is not None and not self._independent(kind, given, spans):
            return None
        shapes = {stream: tuple(given[name].shape[:2]) for stream, name in self._bottom.names.items()}
        rows = RowsInBatch(keys, cast(Any, by_stream), cast(Any, shapes))
        return _Call(rows, real, labelled, _autocast(ids.device), places, asked)

    def _independent(self, kind: Any, given: Mapping[str, Any], spans: Tensor) -> bool:
        """Whether the states of a row in such a call are those that it has alone, at the start of a line."""
        if kind not in self._apart:
            ids = given["input_ids"]
            line, start, count = spans[(spans[:, 1] > 0).nonzero()[0, 0]].tolist()
            ends = slice(start, start + count)
            inputs = {
                name: value for name, value in given.items() if isinstance(value, Tensor) and value.shape == ids.shape
            }
            inputs = {name: value for name, value in inputs.items() if not name.startswith(("labels", "shift_labels"))}
            alone = {name: value[line : line + 1, ends] for name, value in inputs.items()}
            others = {
                name: value for name, value in given.items() if not isinstance(value, Tensor) and name not in _LENGTHS
            }
            blocks = dict(list(last_blocks(self._bottom.cut).items())[:1])  # of an encoder-decoder, the encoder
            whole = {name: value for name, value in given.items() if "labels" not in name}
            try:
                with self.paused(), evaluation_mode(self._training.model), generators_kept(ids.device):
                    together = capture(self._training.model, blocks, whole | {"return_dict": True})
                    single = capture(self._training.model, blocks, alone | others | {"return_dict": True})
                self._apart[kind] = same_states(
                    {stream: states[line, ends].cpu() for stream, states in together.items()},
                    {stream: states[0].cpu() for stream, states in single.items()},
                )
            except (RuntimeError, ValueError, TypeError, IndexError):
                self._apart[kind] = False
        return self._apart[kind]

    def _stores(self, known: _Open | None) -> bool:
        return self._store and (known is None or known.cache.full is None)

    def _keep(self, stream: str, _block: Any, _args: Any, output: Any) -> None:
        """Keep what the last block below the boundary returns, where its rows are to be stored."""
        if self._call is not None and not self._held:
            hidden = hidden_of(output).detach()
            self._returned[stream] = hidden
            self._computed_in = _autocast(hidden.device)

    def _remember(self, call: _Call) -> None:
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
            self._watch.note()

    # Checks.

    def _same(self, call: _Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> bool:
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

    def _difference(self, call: _Call, states: States, args: Any, kwargs: Mapping[str, Any]) -> tuple[str | None, bool]:
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
                return self._summed(output, call)
            finally:
                standins.clear()

        stored = next(iter(states.values())).dtype
        tolerance = OTHER_BATCH if stored == torch.float32 and call.precision is None else STORED_IN_FEWER_BITS
        with self.paused():
            found = compare_training(
                model, partial(outputs, False), partial(outputs, True), tolerance, training=model.training
            )
        if decodes and not grad and "labels" not in call.asked:
            return None, False
        return (None if found is None else f"a call with stored states is not the same as without: {found}"), True

    def _real(self, name: str, call: _Call) -> Tensor | None:
        """Which positions of an output are no padding, [B, T]; None for outputs of which that is not known."""
        two = getattr(self._training.model.config, "is_encoder_decoder", False)
        return call.labelled if two and not name.startswith("encoder") else call.real

    def _watch_padding(self, output: Any, call: _Call) -> None:
        """Learn from the backward pass whether the loss reads outputs at padding."""

        def look(padding: Tensor, gradient: Tensor) -> None:
            if bool(gradient[padding.to(gradient.device)].any()):
                self._reads_padding = "off: the loss reads outputs at padding, which depend on the rows of the batch"
            self._padding_unread = self._reads_padding is None

        watched = False
        for name, value in _tensors(output):
            real = self._real(name, call)
            if real is not None and value.requires_grad and value.shape[:2] == real.shape:
                watched = True
                cast(Any, value).register_hook(partial(look, ~real))
        if not watched and self._returned:
            self._padding_unread = True  # no output has padding

    def _summed(self, output: Any, call: _Call) -> Tensor:
        """One number that depends on all outputs of a call but those at padding, each with a weight of its own."""
        total = torch.zeros(())
        for name, value in _tensors(output):
            found, real = value.float(), self._real(name, call)
            if real is not None and found.dim() >= 2 and found.shape[0] == real.shape[0]:
                length = found.shape[1]
                if real.shape[1] - 1 <= length <= real.shape[1]:  # log-probabilities have one position fewer
                    found = found[real[:, real.shape[1] - length :].to(found.device)]
            generator = torch.Generator().manual_seed(found.numel())
            weights = torch.randn(found.shape, generator=generator).to(found.device)
            total = total.to(found.device) + (found * weights).sum() / max(1, found.numel()) ** 0.5
        return total

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


def _autocast(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in the output of a model, in order, each with the name that it has there."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, name or str(key))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner, name)


def _off() -> LoopSession:
    session = LoopSession.__new__(LoopSession)
    session._standins, session._call, session._held = None, None, True
    return session
