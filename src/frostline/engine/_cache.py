"""Training from the activation cache: what a trainer does before its first step, around each step, and after the
last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from frostline.bottom import (
    CACHED_ROWS,
    ActivationCache,
    AlteredRow,
    CachedRows,
    CachingCollator,
    CannotCut,
    Cut,
    ReadAhead,
    StandIns,
    Streaming,
    cached_rows,
    caching_pass,
    check_room,
    come_back,
    crossing,
    leave_memory,
    rows_of,
    stored_states,
)
from frostline.core.cache import default_root
from frostline.core.errors import UserError
from frostline.engine._cache_check import mismatch, padding_matters
from frostline.engine._cache_work import CacheWork, Declined, Replaceable, bare_collator

Mode = Literal["auto", "on", "off"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheReport:
    """What became of the activation cache in a run.

    `reason` says why it was used or not, `estimate` what was expected of it (both one line). `rows` passed the
    frozen bottom in this run, `found` were in the store already; `bytes` is what the run's rows take on disk,
    `seconds` the time until the first step could begin, `freed_bytes` the weights that left memory.
    """

    used: bool = False
    reason: str = "activation_cache: off"
    estimate: str = ""
    rows: int = 0
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    freed_bytes: int = 0


class Mismatch(Declined):
    """Training from the store would not be the same training."""


class CachedBottom:
    """The frozen bottom of a trainer's model: runs once, then its stored states stand in for it.

    `decide` says whether the store will be used; `begin` makes the caching pass, compares a batch with and without,
    and takes the bottom out of the model; `end` puts it back. In between batches come with their stored rows.
    `report` says what happened. The trainer calls all three; a caller who wants to know before may do so too.
    """

    def __init__(self, trainer: Any, mode: Mode, limit: int | None = None, streaming: Streaming | None = None) -> None:
        if mode not in ("auto", "on", "off"):
            raise UserError(f"activation_cache: '{mode}' is not one of auto, on, off")
        self.trainer, self.mode, self.limit, self.streaming = trainer, mode, limit, streaming
        if streaming is not None and mode == "off":
            raise UserError(
                "a bottom that is read block by block needs the activation cache: take activation_cache: on"
            )
        self.root = default_root()
        self.report = CacheReport()
        self.progress: Callable[[int, int], None] = lambda done, rows: None
        self._decided = False
        self._work: CacheWork | None = None
        self._standins: StandIns | None = None
        self._reader: ReadAhead | None = None
        self._collate: Any = None
        self._fed = False
        self._hook: Any = None

    @property
    def active(self) -> bool:
        return self._standins is not None

    def decide(self) -> CacheReport:
        """Whether the store is to be used and what is expected of it, before any row passes the bottom.

        Raises `UserError` when it was asked for (`on`) and cannot be used, or does not fit its disk.
        """
        if self.mode != "off" and not self._decided and not self.active:
            self._decided, self.report = True, CacheReport()
            with self._trying():
                self._prepare()
        return self.report

    def begin(self) -> None:
        """Before training: use the store if it is right and pays. Raises `UserError` as `decide` does."""
        self.decide()
        if self._work is None or self.active:
            return
        with self._trying():
            self._take_over()
        _log.info("activation cache: %s", self.report.reason)

    def end(self) -> None:
        """After training: the model is whole again (but for a bottom that is read block by block)."""
        self._decided = False
        self._put_back()
        if self._reader is not None and self.streaming is None:
            self._reader.close()
            self._reader = self._work = None

    @contextmanager
    def _trying(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except (Declined, CannotCut, AlteredRow) as error:
            self._work = None
            off = "off, because " if isinstance(error, Mismatch) else ""
            self.report = replace(self.report, used=False, reason=f"{off}{error}")
            if self.streaming is not None:
                raise UserError(f"streaming needs the activation cache, but {error}: take streaming: false") from None
            if self.mode == "on" and not isinstance(error, Mismatch):
                raise UserError(f"activation_cache: on, but {error}: take auto or off") from None
        finally:
            self.report = replace(self.report, seconds=self.report.seconds + time.perf_counter() - begun)

    def _put_back(self) -> None:
        if self._standins is not None and self.streaming is None:
            self._hook.remove()
            self._standins.remove()
            come_back(self._standins, self.trainer.args.device)
            self._standins = None
            self._collate_with(self._collate)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Inside, the model runs on any input; the bottom is back."""
        if not self.active:
            yield
            return
        if self.streaming is not None:
            raise UserError(
                "the whole model is never in memory: only examples that went through the caching pass can run"
            )
        self._put_back()
        try:
            yield
        finally:
            self._take_out()

    @contextmanager
    def feeding(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Around one forward pass: the states of the batch's rows stand ready. Takes its own entry out of `inputs`."""
        rows: CachedRows | None = inputs.pop(CACHED_ROWS, None)
        if rows is None or self._standins is None or self._reader is None:
            yield
            return
        states = self._reader.take(rows)
        device = self.trainer.args.device
        self._standins.feed({name: value.to(device, non_blocking=True) for name, value in states.items()})
        self._fed = True
        try:
            yield
        finally:
            self._fed = False
            self._standins.clear()

    def _feed_by_content(self, _model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Before a forward pass that nothing was fed for: its rows may be known all the same."""
        if self._fed or self._standins is None:
            return
        self._standins.clear()  # of the pass before, if it was fed here
        if not isinstance(kwargs.get("input_ids"), Tensor):
            return
        work = self._known
        rows = rows_of(kwargs, work.inputs)
        keys = [work.key(row) for row in rows]
        if all(key in work.store for key in keys):
            states = stored_states(work.store, cached_rows(keys, kwargs, rows, work.names))
            self._standins.feed({name: value.to(self.trainer.args.device) for name, value in states.items()})

    def holds(self, dataset: Any) -> bool:
        """Whether `dataset` (None, or a name: the trainer's own) can be evaluated on the model as it stands: when
        every row of it is in the store."""
        own = self.trainer.eval_dataset
        if dataset is None or isinstance(dataset, str):
            dataset = own if dataset is None else own[dataset]
        if not self.active or isinstance(dataset, Mapping):
            return True  # of several each is asked for in its turn
        work = self._known
        return any(dataset is known for known in work.datasets) or all(work.key(row) in work.rows for row in dataset)

    # What `decide` and `begin` do.

    def _prepare(self) -> None:
        work = self._work = CacheWork(self.trainer, self.streaming, self.root)
        missing = work.store.missing(work.rows)
        estimate = work.estimate(len(missing))
        self.report = replace(self.report, estimate=str(estimate))
        chosen_here = self.mode == "auto" and self.streaming is None
        if chosen_here and not estimate.pays:
            raise Declined(estimate.reason)
        if self.trainer.is_world_process_zero():
            levels = 1 if self.streaming is None else 2
            try:
                check_room(self.root, levels * sum(work.row_bytes[key] for key in missing), self.limit)
            except UserError as error:
                if chosen_here:
                    raise Declined(str(error)) from None
                raise
        self._tell(f"{len(missing):,} of them have yet to pass the frozen bottom", len(missing))

    def _take_over(self) -> None:
        work = self._known
        check_rows = work.check_rows()
        with self._bottom_or_first_block(work.cut) as places:
            if (why := padding_matters(self.trainer.model, places, work.passage, check_rows)) is not None:
                raise Mismatch(why)
        passed = self._pass(work)
        if self.streaming is None:
            found = mismatch(self.trainer, work.cut, work.passage, work.store, check_rows)
            if found is not None:
                raise Mismatch(found)
        self._reader = ReadAhead(work.store, pinned=self.trainer.args.device.type == "cuda")
        self._take_out()
        self._tell(f"{passed:,} of them passed the frozen bottom now", passed)

    def _collate_with(self, collate: Any) -> None:
        if isinstance(self.trainer.data_collator, Replaceable):
            self.trainer.data_collator.current = collate
        else:
            self.trainer.data_collator = collate

    def _tell(self, what: str, missing: int) -> None:
        sizes = self._known.row_bytes
        self.report = replace(
            self.report,
            used=True,
            reason=f"on: {len(sizes):,} rows, {what}",
            rows=missing,
            found=len(sizes) - missing,
            bytes=sum(sizes.values()),
        )

    @property
    def _known(self) -> CacheWork:
        assert self._work is not None, "the store has been decided on"
        return self._work

    @contextmanager
    def _bottom_or_first_block(self, cut: Cut) -> Iterator[Mapping[str, str]]:
        """Inside, as much of the bottom is in memory as can be: stream -> its last block."""
        if self.streaming is None:
            yield crossing(cut)
        else:
            with self.streaming.first_block() as block:
                yield {cut.streams[0]: block}

    def _pass(self, work: CacheWork) -> int:
        """How many rows passed. Each process takes its own share of them; one holds the store's lock for all."""
        state, store = self.trainer.accelerator, work.store
        with _locked(store, self.trainer.is_world_process_zero(), state.wait_for_everyone):
            keys = store.missing(work.rows)
            state.wait_for_everyone()  # nobody writes before all know what is missing
            share = {key: work.rows[key] for key in keys[state.process_index :: state.num_processes]}
            if self.streaming is not None and share:
                self.streaming.caching_pass(work.cut, share, work.passage_at, work.store_at, self.progress)
            elif share:
                progress = partial(_of_all, self.progress, len(share))
                caching_pass(self.trainer.model, crossing(work.cut), work.passage, share, store, progress=progress)
            state.wait_for_everyone()
        store.refresh()
        return len(keys)

    def _take_out(self) -> None:
        work = self._known
        trainer, model = self.trainer, self.trainer.model
        assert self._reader is not None
        self._standins = StandIns(model, work.cut)
        self._hook = model.register_forward_pre_hook(self._feed_by_content, with_kwargs=True)
        self._collate = bare_collator(trainer)
        self._collate_with(CachingCollator(self._collate, work.names, work.inputs, self._reader))
        freed = leave_memory(model, self._standins, self.root)
        self.report = replace(self.report, freed_bytes=freed)


def _of_all(progress: Callable[[int, int], None], rows: int, done: int) -> None:
    progress(done, rows)


@contextmanager
def _locked(store: ActivationCache, leads: bool, wait: Callable[[], None]) -> Iterator[None]:
    if leads:
        with store.lock():
            wait()
            yield
    else:
        wait()
        store.refresh()
        yield
