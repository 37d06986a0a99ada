"""Training from the cold store: what a trainer does before its first step, around each step, and after the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from frostline.anatomy import Anatomy, select
from frostline.bottom import (
    COLD_ROWS,
    AlteredRow,
    CannotCut,
    ColdCollator,
    ColdRows,
    ColdStore,
    Cut,
    Passage,
    ReadAhead,
    StandIns,
    Stream,
    Streaming,
    check_room,
    cold_pass,
    cold_rows,
    come_back,
    crossing,
    default_root,
    find_cut,
    find_spans,
    hashes_of,
    identity,
    leave_memory,
    names_below,
    row_bytes,
    row_key,
    row_length,
    rows_of,
)
from frostline.core.errors import UserError
from frostline.cost import Workload
from frostline.cost._cold_store import cold_store_estimate
from frostline.engine._cold_check import mismatch, padding_matters
from frostline.plan import FixedSchedule, Plan

Mode = Literal["auto", "on", "off"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColdReport:
    """What became of the cold store in a run.

    `reason` says why it was used or not, `estimate` what was expected of it (both one line). `rows` passed the
    frozen bottom in this run, `found` were in the store already; `bytes` is what the run's rows take on disk,
    `seconds` the time until the first step could begin, `freed_bytes` the weights that left memory.
    """

    used: bool = False
    reason: str = "cold_store: off"
    estimate: str = ""
    rows: int = 0
    found: int = 0
    bytes: int = 0
    seconds: float = 0.0
    freed_bytes: int = 0
    notices: tuple[str, ...] = ()


class Declined(Exception):
    """The cold store is not used; the message says why, in one line."""


class ColdBottom:
    """The frozen bottom of a trainer's model: runs once, then its stored states stand in for it.

    `decide` says whether the store will be used; `begin` makes the cold pass, compares a batch with and without,
    and takes the bottom out of the model; `end` puts it back. In between batches come with their stored rows.
    `report` says what happened. The trainer calls all three; a caller who wants to know before may do so too.
    """

    def __init__(self, trainer: Any, mode: Mode, limit: int | None = None, streaming: Streaming | None = None) -> None:
        if mode not in ("auto", "on", "off"):
            raise UserError(f"cold_store: '{mode}' is not one of auto, on, off")
        self.trainer, self.mode, self.limit, self.streaming = trainer, mode, limit, streaming
        if streaming is not None and mode == "off":
            raise UserError("a bottom that is read block by block needs the cold store: take cold_store: on")
        self.root = default_root()
        self.report = ColdReport()
        self.progress: Callable[[int, int], None] = lambda done, rows: None
        self._decided = False
        self._work: _Work | None = None
        self._standins: StandIns | None = None
        self._cut: Cut | None = None
        self._reader: ReadAhead | None = None
        self._collate: Any = None
        self._keys: set[str] = set()
        self._names: Mapping[str, str] = {}
        self._datasets: list[Any] = []
        self._fed = False
        self._hook: Any = None

    @property
    def active(self) -> bool:
        return self._standins is not None

    def decide(self) -> ColdReport:
        """Whether the store is to be used and what is expected of it, before any row passes the bottom.

        Raises `UserError` when it was asked for (`on`) and cannot be used, or does not fit its disk.
        """
        if self.mode != "off" and not self._decided and not self.active:
            self._decided, self.report = True, ColdReport()
            with self._trying():
                self._work = self._prepare()
        return self.report

    def begin(self) -> None:
        """Before training: use the store if it is right and pays. Raises `UserError` as `decide` does."""
        self.decide()
        if self._work is None:
            return
        with self._trying():
            self._take_over(self._work)
        self._work = None
        _log.info("cold store: %s", self.report.reason)

    def end(self) -> None:
        """After training: the model is whole again (but for a bottom that is read block by block)."""
        self._decided, self._work = False, None
        self._put_back()
        if self._reader is not None and self.streaming is None:
            self._reader.close()
            self._reader = None

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
                raise UserError(f"streaming needs the cold store, but {error}: take streaming: false") from None
            if self.mode == "on" and not isinstance(error, Mismatch):
                raise UserError(f"cold_store: on, but {error}: take auto or off") from None
        finally:
            self.report = replace(self.report, seconds=self.report.seconds + time.perf_counter() - begun)

    def _put_back(self) -> None:
        if self._standins is not None and self.streaming is None:
            self._hook.remove()
            self._standins.remove()
            come_back(self._standins, self.trainer.args.device)
            self._standins = None
            self.trainer.data_collator = self._collate

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Inside, the model runs on any input; the bottom is back."""
        if not self.active:
            yield
            return
        if self.streaming is not None:
            raise UserError("the whole model is never in memory: only examples that went through the cold pass can run")
        self._put_back()
        try:
            yield
        finally:
            self._take_out()

    @contextmanager
    def feeding(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Around one forward pass: the states of the batch's rows stand ready. Takes its own entry out of `inputs`."""
        rows: ColdRows | None = inputs.pop(COLD_ROWS, None)
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
        if (
            self._fed
            or self._standins is None
            or self._reader is None
            or not isinstance(kwargs.get("input_ids"), Tensor)
        ):
            return
        inputs, names = self._inputs(), self._names
        rows = rows_of(kwargs, inputs)
        keys = [row_key(row, inputs) for row in rows]
        if all(key in self._reader.store for key in keys):
            states = self._reader.read(cold_rows(keys, kwargs, rows, names))
            self._standins.feed({name: value.to(self.trainer.args.device) for name, value in states.items()})
        else:
            self._standins.clear()

    def holds(self, dataset: Any) -> bool:
        """Whether `dataset` (None, or a name: the trainer's own) can be evaluated on the model as it stands: when
        every row of it is in the store."""
        own = self.trainer.eval_dataset
        if dataset is None or isinstance(dataset, str):
            dataset = own if dataset is None else own[dataset]
        if not self.active or isinstance(dataset, Mapping) or any(dataset is known for known in self._datasets):
            return True  # of several each is asked for in its turn
        inputs = self._inputs()
        return all(row_key(row, inputs) in self._keys for row in dataset)

    # What `decide` and `begin` do.

    def _prepare(self) -> _Work:
        model = self.trainer.model
        weightless = self.streaming is not None
        cut = self._cut = find_cut(model, self.trainer.applied.anatomy, self._boundary(), weightless=weightless)
        rows = self._rows()
        passage = self._passage(cut)
        _check_collator(passage, self._witnesses(rows, passage))
        store = self._open(cut)
        missing = store.missing(rows)
        self._estimate(passage, cut, rows, len(missing))
        if self.trainer.is_world_process_zero():
            levels = 1 if self.streaming is None else 2
            check_room(self.root, levels * sum(self._row_bytes(passage, cut, rows[key]) for key in missing), self.limit)
        self.report = replace(
            self.report,
            used=True,
            reason=f"on: {len(rows):,} rows, {len(missing):,} of them have yet to pass the frozen bottom",
            rows=len(missing),
            found=len(rows) - len(missing),
            bytes=sum(self._row_bytes(passage, cut, row) for row in rows.values()),
        )
        return _Work(cut, rows, passage, store)

    def _take_over(self, work: _Work) -> None:
        rows, store = work.rows, work.store
        witnesses = self._witnesses(rows, work.passage)
        with self._bottom_or_first_block(work.cut) as places:
            if (why := padding_matters(self.trainer.model, places, work.passage, witnesses)) is not None:
                raise Mismatch(why)
        passed = self._pass(store, work.cut, rows)
        self._keys = set(rows)
        if self.streaming is None:
            found = mismatch(self.trainer, work.cut, work.passage, store, witnesses)
            if found is not None:
                raise Mismatch(found)
        self._activate(store)
        self.report = replace(
            self.report,
            reason=f"on: {len(rows):,} rows, {passed:,} of them passed the frozen bottom now",
            rows=passed,
            found=len(rows) - passed,
        )

    def _witnesses(self, rows: Mapping[str, Any], passage: Passage) -> dict[str, Any]:
        """Some rows by key: the longest, the shortest and two others."""
        by_length = sorted(rows, key=lambda key: passage.length(rows[key]))
        return {key: rows[key] for key in (by_length[-1], by_length[0], *list(rows)[:2])}

    @contextmanager
    def _bottom_or_first_block(self, cut: Cut) -> Iterator[Mapping[str, str]]:
        """Inside, as much of the bottom is in memory as can be: stream -> its last block."""
        if self.streaming is None:
            yield crossing(cut)
        else:
            with self.streaming.first_block() as block:
                yield {cut.streams[0]: block}

    def _boundary(self) -> int:
        trainer = self.trainer
        anatomy = trainer.applied.anatomy
        if trainer.applied.plan.boundary == 0:
            raise Declined("nothing is frozen below the lowest trained block")
        if not isinstance(trainer.schedule, FixedSchedule):
            raise Declined("the schedule may thaw blocks while training")
        if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
            raise Declined("the model's weights are sharded")
        return cut_boundary(trainer.applied.plan, anatomy)

    def _rows(self) -> dict[str, Any]:
        """Every example that training will use, and evaluation during training, by key."""
        datasets = self._datasets = [self.trainer.train_dataset]
        evaluates = self.trainer.args.eval_strategy != "no" or self.streaming is not None
        if evaluates and self.trainer.eval_dataset is not None:
            given = self.trainer.eval_dataset
            datasets += list(given.values()) if isinstance(given, Mapping) else [given]
        inputs = self._inputs()
        rows: dict[str, Any] = {}
        for dataset in datasets:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
                raise Declined("the examples come as a stream, and may change every epoch")
            for index in range(len(dataset)):
                row = dataset[index]
                if not isinstance(row, Mapping) or "input_ids" not in row:
                    raise Declined("the examples are not rows with input_ids")
                rows[row_key(row, inputs)] = row
            if len(dataset) and row_key(dataset[0], inputs) not in rows:
                raise Declined("the examples change every time they are read")
        if not rows:
            raise Declined("there are no examples")
        return rows

    def _inputs(self) -> list[str]:
        """The features that the bottom reads."""
        trainer = self.trainer
        trainer._set_signature_columns_if_needed()
        labels = {"label", "label_ids", *trainer.label_names}
        names = [name for name in trainer._signature_columns if name not in labels]
        return [*names, "labels"] if self._cut is not None and "decoder" in self._cut.streams[1:] else names

    def _passage(self, cut: Cut) -> Passage:
        trainer = self.trainer
        collate = trainer.data_collator
        if trainer.args.remove_unused_columns:
            collate = trainer._get_collator_with_removed_columns(collate)
        dtype = self._autocast_dtype()
        several = len(cut.streams) > 1
        return Passage(
            names={s: "labels" if several and s == "decoder" else "input_ids" for s in cut.streams},
            dtypes={stack.stream: dtype or stack.state_dtype for stack in cut.stacks},
            collate=collate,
            context=lambda: torch.autocast(trainer.args.device.type, dtype, enabled=dtype is not None),
            device=trainer.args.device,
        )

    def _autocast_dtype(self) -> torch.dtype | None:
        args = self.trainer.args
        return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def _open(self, cut: Cut) -> ColdStore:
        trainer, anatomy = self.trainer, self.trainer.applied.anatomy
        below = names_below(anatomy, cut)
        trained = sorted(set(below) & set(trainer.applied.lr_scales))
        if trained:
            raise Declined(f"{trained[0]} trains, and blocks below the boundary read it")
        hashes = hashes_of(trainer.model, below) if self.streaming is None else self.streaming.hashes
        key = identity(
            trainer.model,
            cut,
            {name: hashes[name] for name in below},
            inputs=self._inputs(),
            autocast=self._autocast_dtype(),
            device=trainer.args.device.type,
        )
        return ColdStore.open(self.root, key, self._streams(cut))

    def _streams(self, cut: Cut) -> dict[str, Stream]:
        return {name: Stream(cut.width, dtype) for name, dtype in self._passage(cut).dtypes.items()}

    def _row_bytes(self, passage: Passage, cut: Cut, row: Any) -> int:
        return row_bytes(self._streams(cut), {stream: row_length(row, name) for stream, name in passage.names.items()})

    def _estimate(self, passage: Passage, cut: Cut, rows: Mapping[str, Any], missing: int) -> None:
        args, applied = self.trainer.args, self.trainer.applied
        tokens = sum(passage.length(row) for row in rows.values())
        workload = Workload(
            rows=len(rows),
            length=max(1, round(tokens / len(rows))),
            batch=args.train_batch_size,
            epochs=self._passes(),
            dtype="float32" if self._autocast_dtype() is None else "bfloat16",
            stored_share=1 - missing / len(rows),
        )
        size = sum(self._row_bytes(passage, cut, row) for row in rows.values())
        estimate = cold_store_estimate(applied.plan, applied.anatomy, workload, size)
        self.report = replace(self.report, estimate=str(estimate))
        if self.mode == "auto" and not estimate.pays:
            raise Declined(estimate.reason)

    def _passes(self) -> float:
        """How often training reads each of its examples."""
        args, rows = self.trainer.args, len(self.trainer.train_dataset)
        if args.max_steps > 0:
            per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return float(args.max_steps * per_step / rows)
        return float(args.num_train_epochs)

    def _pass(self, store: ColdStore, cut: Cut, rows: Mapping[str, Any]) -> int:
        """How many rows passed. Each process takes its own share of them; one holds the store's lock for all."""
        trainer, state = self.trainer, self.trainer.accelerator
        training = trainer.model.training
        with _locked(store, trainer.is_world_process_zero(), state.wait_for_everyone):
            keys = store.missing(rows)
            state.wait_for_everyone()  # nobody writes before all know what is missing
            share = {key: rows[key] for key in keys[state.process_index :: state.num_processes]}
            if self.streaming is not None and share:
                self.streaming.cold_pass(cut, share, self._passage, self._open, self.progress)
            elif share:
                passage = self._passage(cut)
                cold_pass(
                    trainer.model, crossing(cut), passage, share, store, progress=self._share_progress(len(share))
                )
            state.wait_for_everyone()
        store.refresh()
        trainer.model.train(training)
        return len(keys)

    def _share_progress(self, rows: int) -> Callable[[int], None]:
        return lambda done: self.progress(done, rows)

    def _activate(self, store: ColdStore) -> None:
        assert self._cut is not None
        self._reader = ReadAhead(store, pinned=self.trainer.args.device.type == "cuda")
        self._names = self._passage(self._cut).names
        self._take_out()

    def _take_out(self) -> None:
        assert self._cut is not None and self._reader is not None
        trainer, model = self.trainer, self.trainer.model
        self._standins = StandIns(model, self._cut)
        self._hook = model.register_forward_pre_hook(self._feed_by_content, with_kwargs=True)
        self._collate = trainer.data_collator
        trainer.data_collator = ColdCollator(self._collate, self._names, self._inputs(), self._reader)
        freed = leave_memory(model, self._standins, self.root)
        self.report = replace(self.report, freed_bytes=freed)


def _check_collator(passage: Passage, rows: Mapping[str, Any]) -> None:
    features = list(rows.values())
    batch = passage.batch(features)
    for name in set(passage.names.values()):
        find_spans(batch, features, name)


@dataclass(frozen=True)
class _Work:
    """What is to be done: the examples by key, how they pass, and the store that they go to."""

    cut: Cut
    rows: Mapping[str, Any]
    passage: Passage
    store: ColdStore


class Mismatch(Declined):
    """Training from the store would not be the same training."""


def cut_boundary(plan: Plan, anatomy: Anatomy) -> int:
    """The block below which nothing depends on training: the plan's boundary, or the end of the encoder when the
    norm there trains, since every decoder block reads what it makes."""
    encoder = sum(block.stack == "encoder" for block in anatomy.blocks)
    if anatomy.encoder_decoder and plan.boundary > encoder:
        norms = {tensor.name for tensor in anatomy.final_norm}
        if any(trained.tensor.name in norms for trained in select(plan, anatomy)):
            return encoder
    return plan.boundary


@contextmanager
def _locked(store: ColdStore, leads: bool, wait: Callable[[], None]) -> Iterator[None]:
    if leads:
        with store.lock():
            wait()
            yield
    else:
        wait()
        store.refresh()
        yield
