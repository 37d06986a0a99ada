"""A training's use of the activation cache, in any loop: decide, fill, compare, take the bottom out, feed, put it back.

A session knows no trainer. It is told what trains on which rows (`Training`), and from `begin` to `end` every forward
pass of the model whose rows are in the cache reads their states; any other pass runs the bottom, as ever. The model
stays whole to whoever looks at it.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import get_worker_info

from frostline.bottom._cache import ActivationCache, check_room
from frostline.bottom._caching_pass import caching_pass
from frostline.bottom._check import mismatch, padding_matters
from frostline.bottom._contents import Contents, Declined, Training
from frostline.bottom._cut import CannotCut, Cut, crossing
from frostline.bottom._feed import ReadAhead, States, rows_in_batch, stored_states
from frostline.bottom._rows import AlteredRow, Features
from frostline.bottom._standins import StandIns
from frostline.bottom._streaming import Streaming
from frostline.bottom._weights import AwayWeights
from frostline.core.cache import default_root
from frostline.core.errors import FrostlineError, UserError

Mode = Literal["auto", "on", "off"]
_log = logging.getLogger(__name__)

_BRINGS_STATES = ("past_key_values", "inputs_embeds", "encoder_outputs")
_ASKS_BELOW = ("output_hidden_states", "output_attentions", "use_cache")
"""Arguments of a call that the bottom has to answer: keys and values from before, embeddings, states of every block."""


@dataclass(frozen=True)
class CacheReport:
    """What became of the activation cache in a training.

    `reason` says why it was used or not, `estimate` what was expected of it (both one line). `rows` passed the frozen
    bottom in this training, `found` were in the cache already; `bytes` is what its rows take on disk, `seconds` the
    time until the first step could begin, `freed_bytes` the weights that left memory. `computed` are the training
    batches whose rows were not all in the cache.
    """

    used: bool = False
    reason: str = "activation_cache: off"
    estimate: str = ""
    rows: int = 0
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    freed_bytes: int = 0
    computed: int = 0

    @property
    def notice(self) -> str | None:
        """What training did beside the cache, in a line; None where nothing."""
        if not self.computed:
            return None
        return (
            f"{self.computed:,} training batches held rows that are not in the activation cache: for these the frozen "
            "bottom ran as ever"
        )


@dataclass(frozen=True)
class Processes:
    """The processes that train together: which one this is, of how many, and how it waits for all others."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


class _Mismatch(Declined):
    """Training from the cache would not be the same training."""


class CacheSession:
    """The frozen bottom of a training: runs once, then its stored states stand in for it.

    `decide` says whether the cache will be used; `begin` makes the caching pass, compares a few rows with and without,
    and takes the bottom out of memory; `end` puts it back. `report` says what happened.

    Args:
        training: gives what is trained on, as it stands when the session decides.
        mode: `auto` where the cache is right and pays, `on` where it is right, `off`.
        limit: bytes that all caches together may take on disk.
        streaming: a bottom that is read block by block, and never in memory whole.
        processes: those that train together.
        root: where caches lie.
    """

    def __init__(
        self,
        training: Callable[[], Training],
        mode: Mode = "auto",
        *,
        limit: int | None = None,
        streaming: Streaming | None = None,
        processes: Processes | None = None,
        root: Path | None = None,
    ) -> None:
        if mode not in ("auto", "on", "off"):
            raise UserError(f"activation_cache: '{mode}' is not one of auto, on, off")
        if streaming is not None and mode == "off":
            raise UserError("a bottom that is read block by block needs the activation cache: use activation_cache: on")
        self._training, self.mode, self._limit, self._streaming = training, mode, limit, streaming
        self._processes = processes or Processes()
        self._root = root or default_root()
        self.report = CacheReport()
        self.progress: Callable[[int, int], None] = lambda done, rows: None
        self._decided = False
        self._contents: Contents | None = None
        self._standins: StandIns | None = None
        self._reader: ReadAhead | None = None
        self._weights: AwayWeights | None = None
        self._hooks: list[Any] = []
        self._held = False
        self._arguments: tuple[str, ...] = ()

    def __reduce__(self) -> Any:
        """A copy of the model (a running average, a pickle) has a bottom of its own, and no use for a session."""
        return _without_cache, ()

    @property
    def active(self) -> bool:
        """Whether forward passes read from the cache."""
        return self._standins is not None

    def decide(self) -> CacheReport:
        """Whether the cache is to be used and what is expected of it, before any row passes the bottom.

        Raises `UserError` when it was asked for (`on`) and cannot be used, or does not fit its disk.
        """
        if self.mode != "off" and not self._decided and not self.active:
            self._decided, self.report = True, CacheReport()
            with self._trying():
                self._prepare()
        return self.report

    def begin(self) -> None:
        """Before training: use the cache if it is right and pays. Raises `UserError` as `decide` does."""
        self.decide()
        if self._contents is None or self.active:
            return
        with self._trying():
            self._take_over(self._contents)
        _log.info("activation cache: %s", self.report.reason)

    def end(self) -> None:
        """After training: the bottom is in memory again (but for one that is read block by block)."""
        self._decided = False
        if self._streaming is not None:
            return
        for hook in self._hooks:
            hook.remove()
        if self._standins is not None:
            self._standins.remove()
        if self._weights is not None:
            self._weights.come_back()
        if self._reader is not None:
            self._reader.close()
        self._hooks, self._standins, self._weights, self._reader, self._contents = [], None, None, None, None

    def expect(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> None:
        """Tell that `batch` was collated of `rows`, so that their states are read before the model is called."""
        if self._reader is not None and get_worker_info() is None:
            self._reader.expect(rows, batch)

    @contextmanager
    def holding(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> Iterator[None]:
        """Inside, every pass through the bottom gives the states of `rows` as they lie in `batch`, also where a pass
        is given other ids. For one who looks into the model with a batch of cached rows."""
        if self._standins is None or self._contents is None:
            yield
            return
        contents = self._contents
        keys = [contents.key(row) for row in rows]
        self._feed(stored_states(contents.cache, rows_in_batch(keys, batch, rows, contents.names)))
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._standins.clear()

    # What `decide` and `begin` do.

    @contextmanager
    def _trying(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except (Declined, CannotCut, AlteredRow) as error:
            self._contents = None
            off = "off, because " if isinstance(error, _Mismatch) else ""
            self.report = replace(self.report, used=False, reason=f"{off}{error}")
            if self._streaming is not None:
                raise UserError(f"streaming needs the activation cache, but {error}: use streaming: false") from None
            if self.mode == "on" and not isinstance(error, _Mismatch):
                raise UserError(f"activation_cache: on, but {error}: use auto or off") from None
        finally:
            self.report = replace(self.report, seconds=self.report.seconds + time.perf_counter() - begun)

    def _prepare(self) -> None:
        if self._streaming is not None and self._processes.count > 1:
            raise Declined("several processes would each read the bottom, and remove what others still read")
        contents = self._contents = Contents(self._training(), self._streaming, self._root)
        missing = contents.cache.missing(contents.rows)
        chosen_here = self.mode == "auto" and self._streaming is None
        if contents.training.estimate is not None:
            estimate = contents.training.estimate(contents.amount(len(missing)))
            self.report = replace(self.report, estimate=str(estimate))
            if chosen_here and not estimate.pays:
                raise Declined(estimate.reason)
        if self._processes.rank == 0:
            levels = 1 if self._streaming is None else 2
            try:
                check_room(self._root, levels * sum(contents.row_bytes[key] for key in missing), self._limit)
            except UserError as error:
                if chosen_here:
                    raise Declined(str(error)) from None
                raise
        self._tell(contents, f"{len(missing):,} of them have yet to pass the frozen bottom", len(missing))

    def _take_over(self, contents: Contents) -> None:
        check_rows = contents.check_rows()
        with self._bottom_or_first_block(contents.cut) as places:
            if (why := padding_matters(contents, places, check_rows)) is not None:
                raise _Mismatch(why)
        passed = self._pass(contents)
        if self._streaming is None and (found := mismatch(contents, check_rows)) is not None:
            raise _Mismatch(found)
        self._tell(contents, f"{passed:,} of them passed the frozen bottom now", passed)
        self._take_out(contents)

    def _tell(self, contents: Contents, what: str, missing: int) -> None:
        sizes = contents.row_bytes
        self.report = replace(
            self.report,
            used=True,
            reason=f"on: {len(sizes):,} rows, {what}",
            rows=missing,
            found=len(sizes) - missing,
            bytes=sum(sizes.values()),
        )

    @contextmanager
    def _bottom_or_first_block(self, cut: Cut) -> Iterator[Mapping[str, str]]:
        """Inside, as much of the bottom is in memory as can be: stream -> its last block."""
        if self._streaming is None:
            yield crossing(cut)
        else:
            with self._streaming.first_block() as block:
                yield {cut.streams[0]: block}

    def _pass(self, contents: Contents) -> int:
        """How many rows passed. Each process takes its own share of them; one holds the cache's lock for all."""
        group, cache = self._processes, contents.cache
        with _locked(cache, group):
            keys = cache.missing(contents.rows)
            group.wait()  # nobody writes before all know what is missing
            share = {key: contents.rows[key] for key in keys[group.rank :: group.count]}
            if self._streaming is not None and share:
                self._streaming.caching_pass(contents.cut, share, contents.passage_at, contents.cache_at, self.progress)
            elif share:
                places, model = crossing(contents.cut), contents.training.model
                caching_pass(
                    model, places, contents.passage, share, cache, progress=lambda done: self.progress(done, len(share))
                )
            group.wait()
        cache.refresh()
        return len(keys)

    # From `begin` to `end`.

    def _take_out(self, contents: Contents) -> None:
        training, model = contents.training, contents.training.model
        pinned = training.device.type == "cuda"
        self._reader = ReadAhead(contents.cache, contents.inputs, contents.names, pinned=pinned)
        self._standins = StandIns(model, contents.cut, self._before_own)
        self._weights = AwayWeights(model, self._standins, self._root)
        try:
            freed = self._weights.leave()
        except BaseException:
            self.end()
            raise
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._hooks = [
            model.register_forward_pre_hook(self._before_pass, with_kwargs=True),
            model.register_forward_hook(self._after_pass, always_call=True),
        ]
        self.report = replace(self.report, freed_bytes=freed)

    def _before_pass(self, model: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self._held or self._standins is None or self._reader is None:
            return
        batch = dict(zip(self._arguments, args, strict=False)) | dict(kwargs)
        asks = any(batch.get(name) for name in _ASKS_BELOW)
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in batch.values()):
            raise FrostlineError(
                "the batch lies on the meta device: the first weights of a streamed model do, so model.device is no "
                "place for a batch. Use the trainer's device (trainer.args.device)"
            )
        known = not asks and all(batch.get(name) is None for name in _BRINGS_STATES)
        states = self._reader.take(batch) if known else None
        if states is not None:
            self._feed(states)
        elif model.training and torch.is_grad_enabled():
            self.report = replace(self.report, computed=self.report.computed + 1)

    def _after_pass(self, *_: Any) -> None:
        if not self._held and self._standins is not None:
            self._standins.clear()

    def _feed(self, states: States) -> None:
        assert self._standins is not None and self._weights is not None and self._contents is not None
        if torch.is_grad_enabled():
            self._weights.leave()  # they may have come back for a pass of other rows
        device = self._contents.training.device
        self._standins.feed({name: value.to(device, non_blocking=True) for name, value in states.items()})

    def _before_own(self) -> None:
        """A pass of rows that are not in the cache: the bottom runs itself."""
        if self._streaming is not None:
            raise FrostlineError(
                "the bottom of this model is read block by block and never in memory: only rows that passed it can "
                "run. Evaluate other rows with frostline.load, or use streaming: false"
            )
        assert self._weights is not None and self._contents is not None
        if self._contents.training.device.type != "cpu":
            self._weights.come_back()


def _without_cache() -> CacheSession:
    def nothing() -> Training:
        raise AssertionError("a session that is off asks for nothing")

    return CacheSession(nothing, "off")


@contextmanager
def _locked(cache: ActivationCache, group: Processes) -> Iterator[None]:
    if group.rank == 0:
        with cache.lock():
            group.wait()
            yield
    else:
        group.wait()
        cache.refresh()
        yield
