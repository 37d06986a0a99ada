"""What the loggers of `report_to` get beside the loss: learning rates by block, what trains, the cache, cost shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from frostline.anatomy import Anatomy, text_model
from frostline.cost import Workload, flops_ratio, has_dropout, storage_dtype
from frostline.hooks import state_kept
from frostline.plan import Plan
from frostline.surgery import Applied

LOGGERS = tuple(INTEGRATION_TO_CALLBACK.values())
LOOKED_AT = 64
"""Training rows whose mean length the predicted operations are for."""


class LiveScalars(TrainerCallback):
    """Sends the scalars of docs/live.md to the loggers of `report_to`, with every training loss that is logged.

    They go to these loggers alone: the trainer's own log, and what it prints, stay as they are.

    Args:
        trainer: a `transformers.Trainer`.
        applied: gives what the plan of now did to its model.
    """

    def __init__(self, trainer: Any, applied: Callable[[], Applied]) -> None:
        self._trainer, self._applied = trainer, applied
        self._begun, self._cached_before = time.perf_counter(), 0.0
        self._rates: list[float] = []
        self._length: Mapping[str, int] | None = None
        self._shares: tuple[Plan, bool, float | None] | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begun, self._cached_before = time.perf_counter(), self._trainer.cache_report.seconds
        self._rates, self._length, self._shares = [], None, None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        # The loss is logged after the scheduler's step, when the groups have the rates of the next step.
        if self._loggers():
            self._rates = [float(group["lr"]) for group in self._trainer.optimizer.param_groups]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **around: Any) -> None:
        if "loss" not in (logs or {}) or not state.is_world_process_zero or not (loggers := self._loggers()):
            return
        found = self._scalars()
        for logger in loggers:
            logger.on_log(args, state, control, logs=dict(found), **around)

    def _loggers(self) -> list[TrainerCallback]:
        return [one for one in self._trainer.callback_handler.callbacks if isinstance(one, LOGGERS)]

    def _scalars(self) -> dict[str, float]:
        applied, report = self._applied(), self._trainer.cache_report
        plan, anatomy = applied.plan, applied.anatomy
        modes = [block.mode for block in plan.blocks]
        elapsed = self._cached_before + time.perf_counter() - self._begun
        trained = [p for p in self._trainer.model.parameters() if p.requires_grad]
        found: dict[str, float] = {
            **self._block_rates(anatomy),
            "trains/blocks": sum(mode != "frozen" for mode in modes),
            "trains/boundary": plan.boundary,
            "trains/parameters": sum(p.numel() for p in trained),
            "cache/used": int(report.used),
            "cache/rows": report.rows + report.found,
            "cache/batches_computed": report.computed,
            "cost/caching_share": min(1.0, report.seconds / elapsed),
        }
        if (share := self._step_share(applied)) is not None:
            found["cost/step_flops_ratio"] = share
        return found

    def _block_rates(self, anatomy: Anatomy) -> dict[str, float]:
        """The learning rate of each part in the step that was just made: the highest of its tensors, 0 where frozen."""
        optimizer = self._trainer.optimizer
        if optimizer is None or len(self._rates) != len(optimizer.param_groups):
            return {}
        of_tensor = {
            id(parameter): rate
            for rate, group in zip(self._rates, optimizer.param_groups, strict=True)
            for parameter in group["params"]
            if parameter.requires_grad
        }
        digits = len(str(len(anatomy.blocks) - 1))
        blocks = {f"{block.name}.": f"lr/block_{block.index:0{digits}}" for block in anatomy.blocks}
        around = {tensor.name: "lr/embeddings" for tensor in anatomy.embeddings}
        around |= {tensor.name: "lr/final_norm" for tensor in anatomy.final_norm}
        found = dict.fromkeys(["lr/embeddings", *blocks.values(), "lr/final_norm", "lr/head"], 0.0)
        for name, parameter in text_model(self._trainer.model).named_parameters():
            if id(parameter) in of_tensor:
                part = next((part for start, part in blocks.items() if name.startswith(start)), None)
                part = part or around.get(name, "lr/head")  # what is around the blocks and new: the copy of a head
                found[part] = max(found[part], of_tensor[id(parameter)])
        return found

    def _step_share(self, applied: Applied) -> float | None:
        """Predicted operations of a step under the plan of now, to those of full fine-tuning; None where unknown."""
        used = bool(self._trainer.cache_report.used)
        if self._shares is None or self._shares[:2] != (applied.plan, used):
            self._shares = (applied.plan, used, self._predicted(applied, used))
        return self._shares[2]

    def _predicted(self, applied: Applied, used: bool) -> float | None:
        if self._length is None:
            self._length = mean_length(self._trainer.train_dataset, applied.anatomy.encoder_decoder)
        if not self._length:
            return None
        args, config = self._trainer.args, text_model(self._trainer.model).config
        workload = Workload(
            **self._length,
            per_device_train_batch_size=args.train_batch_size,
            bf16=args.bf16,
            activation_checkpointing=bool(args.activation_checkpointing),
            dropout=has_dropout(config),
            frozen_dtype=storage_dtype(applied.base_dtype),
            activation_cache=used,
        )
        return flops_ratio(applied.plan, applied.anatomy, workload)


def report_live(trainer: Any, applied: Callable[[], Applied]) -> None:
    """Add `LiveScalars` to a trainer that has a logger, once. The arguments are those of `LiveScalars`."""
    callbacks = trainer.callback_handler.callbacks
    if any(isinstance(one, LOGGERS) for one in callbacks) and not any(
        isinstance(one, LiveScalars) for one in callbacks
    ):
        trainer.add_callback(LiveScalars(trainer, applied))


def mean_length(rows: Any, targets: bool = False) -> dict[str, int]:
    """The mean length of a few tokenized rows, as settings of a `Workload`; empty where the rows do not tell it.

    Args:
        rows: a training set.
        targets: the rows have targets of their own, which a decoder reads.
    """
    if isinstance(rows, Mapping) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        return {}
    count = len(rows)
    with state_kept(rows):
        few = [rows[index] for index in range(0, count, max(1, -(-count // LOOKED_AT)))]
    if not few or not all(isinstance(row, Mapping) and hasattr(row.get("input_ids"), "__len__") for row in few):
        return {}
    ids = [row["input_ids"] for row in few]
    if isinstance(ids[0][0], list | tuple):  # a text with each of its choices
        return {"length": _mean(max(map(len, texts)) for texts in ids), "texts": len(ids[0])}
    labels = [row.get("labels") for row in few]
    told = targets and all(hasattr(own, "__len__") for own in labels)
    return {"length": _mean(map(len, ids)), **({"label_tokens": _mean(map(len, labels))} if told else {})}


def _mean(lengths: Any) -> int:
    return max(1, round(statistics.fmean(lengths)))
