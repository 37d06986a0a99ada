"""What a run's activation cache holds and where: the examples, the cut, how rows pass, what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import IterableDataset

from frostline.bottom import (
    ActivationCache,
    Cut,
    Passage,
    Stream,
    Streaming,
    buffers_below,
    cut_boundary,
    find_cut,
    find_spans,
    hashes_of,
    identity,
    names_below,
    row_bytes,
    row_key,
    row_length,
)
from frostline.cost import Estimate, Workload, cache_estimate
from frostline.plan import Plan
from frostline.surgery import reads_below


class Declined(Exception):
    """The activation cache is not used; the message says why, in one line."""


class Replaceable:
    """A collator that can be exchanged for another while batches are being made."""

    def __init__(self, collate: Any) -> None:
        self.current = collate

    def __call__(self, rows: Any) -> Any:
        return self.current(rows)


class CacheWork:
    """What is to pass the frozen bottom of a trainer's model: `rows`, every example that training will use, by key.

    Raises `Declined` or `CannotCut` when a store cannot be right for this trainer.
    """

    def __init__(self, trainer: Any, streaming: Streaming | None, root: Any) -> None:
        self.trainer, self.streaming, self.root = trainer, streaming, root
        self._stores: dict[int, ActivationCache] = {}
        boundary = _boundary(trainer)
        if streaming is not None and trainer.args.world_size > 1:
            raise Declined("several processes would each read the bottom, and remove what others still read")
        self.cut = find_cut(trainer.model, trainer.applied.anatomy, boundary, weightless=streaming is not None)
        self.names = {
            stream: "labels" if stream == "decoder" and len(self.cut.streams) > 1 else "input_ids"
            for stream in self.cut.streams
        }
        self.datasets = self._datasets()
        self.rows = self._rows()
        self._check_collator()

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The features that the bottom reads."""
        self.trainer._set_signature_columns_if_needed()
        labels = {"label", "label_ids", *self.trainer.label_names}
        names = [name for name in self.trainer._signature_columns if name not in labels]
        return (*names, "labels") if "labels" in self.names.values() else tuple(names)

    @cached_property
    def passage(self) -> Passage:
        return self.passage_at(self.cut)

    def passage_at(self, cut: Cut) -> Passage:
        """How rows pass up to `cut`, which may lie lower than the work's own."""
        collate, dtype = bare_collator(self.trainer), self._autocast_dtype
        if self.trainer.args.remove_unused_columns:
            collate = self.trainer._get_collator_with_removed_columns(collate)
        device = self.trainer.args.device
        return Passage(
            names={stream: self.names[stream] for stream in cut.streams},
            dtypes={stack.stream: dtype or stack.state_dtype for stack in cut.stacks},
            collate=collate,
            context=lambda: torch.autocast(device.type, dtype, enabled=dtype is not None),
            device=device,
        )

    def store_at(self, cut: Cut) -> ActivationCache:
        """The store of the states at `cut`."""
        if cut.boundary not in self._stores:
            self._stores[cut.boundary] = self._open(cut)
        return self._stores[cut.boundary]

    def _open(self, cut: Cut) -> ActivationCache:
        trainer = self.trainer
        below = names_below(trainer.applied.anatomy, cut)
        trained = sorted(set(below) & set(trainer.applied.lr_scales))
        if trained:
            raise Declined(f"{trained[0]} trains, and blocks below the boundary read it")
        hashes = hashes_of(trainer.model, below) if self.streaming is None else self.streaming.hashes
        key = identity(
            trainer.model,
            cut,
            {name: hashes[name] for name in below}
            | buffers_below(trainer.model, trainer.applied.anatomy, cut)
            | _forward(trainer.applied.plan),
            inputs=self.inputs,
            autocast=self._autocast_dtype,
            device=trainer.args.device.type,
        )
        name = str(getattr(trainer.model.config, "_name_or_path", "")).rstrip("/").rpartition("/")[2]
        return ActivationCache.open(self.root, key, _streams(cut, self.passage_at(cut)), label=name)

    @property
    def store(self) -> ActivationCache:
        """The store of the states at the work's own cut."""
        return self.store_at(self.cut)

    def key(self, row: Mapping[str, Any]) -> str:
        return row_key(row, self.inputs)

    @cached_property
    def row_bytes(self) -> dict[str, int]:
        """What each row takes in the store, by key."""
        streams = _streams(self.cut, self.passage)
        lengths = (
            (key, {stream: row_length(row, name) for stream, name in self.names.items()})
            for key, row in self.rows.items()
        )
        return {key: row_bytes(streams, length) for key, length in lengths}

    def check_rows(self) -> dict[str, Any]:
        """Some rows by key: the longest, the shortest and two others."""
        by_length = sorted(self.rows, key=self.row_bytes.__getitem__)
        return {key: self.rows[key] for key in (by_length[-1], by_length[0], *list(self.rows)[:2])}

    def estimate(self, missing: int) -> Estimate:
        """What a store that lacks `missing` of the rows would do for this run."""
        args, applied, count = self.trainer.args, self.trainer.applied, len(self.rows)
        workload = Workload(
            rows=count,
            length=max(1, round(sum(map(self.passage.length, self.rows.values())) / count)),
            batch=args.train_batch_size,
            epochs=self._passes(),
            dtype="float32" if self._autocast_dtype is None else "bfloat16",
            stored_share=1 - missing / count,
        )
        return cache_estimate(applied.plan, applied.anatomy, workload, sum(self.row_bytes.values()))

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
        args = self.trainer.args
        return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def _passes(self) -> float:
        """How often training reads each of its examples under the current plan."""
        args, rows = self.trainer.args, len(self.trainer.train_dataset)
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        passes = args.max_steps * per_step / rows if args.max_steps > 0 else args.num_train_epochs
        began = self.trainer.changes[-1].step if self.trainer.changes else 0
        return float(max(passes - began * per_step / rows, per_step / rows))

    def _datasets(self) -> list[Any]:
        """What training reads, and what is evaluated while it trains."""
        trainer = self.trainer
        evaluates = trainer.args.eval_strategy != "no" or self.streaming is not None
        given = trainer.eval_dataset if evaluates else None
        others = list(given.values()) if isinstance(given, Mapping) else [] if given is None else [given]
        return [trainer.train_dataset, *others]

    def _rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for dataset in self.datasets:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
                raise Declined("the examples come as a stream, and may change every epoch")
            for index in range(len(dataset)):
                row = dataset[index]
                if not isinstance(row, Mapping) or "input_ids" not in row:
                    raise Declined("the examples are not rows with input_ids")
                rows[self.key(row)] = row
            if len(dataset) and self.key(dataset[0]) not in rows:
                raise Declined("the examples change every time they are read")
        if not rows:
            raise Declined("there are no examples")
        return rows

    def _check_collator(self) -> None:
        features = list(self.check_rows().values())
        batch = self.passage.batch(features)
        for name in set(self.names.values()):
            find_spans(batch, features, name)


def bare_collator(trainer: Any) -> Any:
    """What makes a trainer's batches."""
    collate = trainer.data_collator
    return collate.current if isinstance(collate, Replaceable) else collate


def _boundary(trainer: Any) -> int:
    if trainer.applied.plan.boundary == 0:
        raise Declined("nothing is frozen below the lowest trained block")
    if not trainer.schedule.settled:
        raise Declined("the schedule may yet change which blocks train")
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
        raise Declined("the model's weights are sharded")
    boundary = cut_boundary(trainer.applied.plan, trainer.applied.anatomy)
    if (reason := reads_below(trainer.applied.plan, boundary)) is not None:
        raise Declined(reason)
    return boundary


def _forward(plan: Plan) -> dict[str, str]:
    """What the plan changes in the forward pass of the blocks below."""
    residual = plan.forward.residual
    return {"forward.residual": residual.model_dump_json()} if plan.forward.interacts else {}


def _streams(cut: Cut, passage: Passage) -> dict[str, Stream]:
    return {name: Stream(cut.width, dtype) for name, dtype in passage.dtypes.items()}
