"""A run's data, and the workload that its cost is predicted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frostline.anatomy import Anatomy
from frostline.core.sizes import parse_size
from frostline.cost import EvaluationWork, Workload, has_dropout, rows_within, storage_dtype
from frostline.engine import GroupedByLength, asks_sharding
from frostline.processes import running
from frostline.run._config import RunConfig
from frostline.run._device import uses_bfloat16
from frostline.surgery import Applied
from frostline.tasks import MOST_ROWS, Encoded, Task, TaskKind, eval_batch_size, model_kind, rows_that_fit


@dataclass(frozen=True)
class Data:
    """A task as the model will read it. `rows` is the training split, without the rows that are held out of it."""

    task: Task
    tokenizer: Any
    rows: Encoded
    eval_rows: Encoded
    held_out: Encoded | None = None

    def mean_length(self, config: RunConfig) -> float:
        """Tokens of a training batch, padding included, divided by its rows."""
        lengths, size = self.rows.lengths, config.per_device_train_batch_size
        if config.pad_to_max_length:
            return config.max_length
        if config.packing:
            return sum(lengths) / len(lengths)
        if config.train_sampling_strategy != "random":
            order: list[int] = list(range(len(lengths)))
            if config.train_sampling_strategy == "group_by_length":
                order = list(GroupedByLength(step_rows_of(config), lengths, config.seed))
            longest = [max(lengths[row] for row in order[i : i + size]) for i in range(0, len(order), size)]
            return sum(longest) / len(longest)
        return _expected_longest(lengths, size)


def shares_model(config: RunConfig) -> bool:
    """Whether the processes of a run divide its model (FSDP)."""
    return asks_sharding(config.training.get("fsdp"))


def devices_of(config: RunConfig) -> dict[str, int]:
    """How the processes of a run share its work: `devices` divide the model, `processes` each have all of it."""
    count = running().count
    return {"devices": count, "processes": 1} if shares_model(config) else {"devices": 1, "processes": count}


def step_rows_of(config: RunConfig) -> int:
    """The rows of an optimizer step, in all processes together."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * running().count


def workload_of(config: RunConfig, data: Data, anatomy: Anatomy, model_config: Any, dtype: str) -> Workload:
    """The work of a run: every position computed in every step, without an activation cache.

    `model_config` and `dtype` are those of the model before a plan is applied.
    """
    rows = len(data.rows)
    length = round(data.mean_length(config))
    passes = config.max_steps * step_rows_of(config) / rows if config.max_steps else config.num_train_epochs
    attention = "eager" if model_config._attn_implementation == "eager" else "sdpa"
    return Workload(
        rows=rows,
        length=length,
        texts=data.rows.texts,
        per_device_train_batch_size=config.per_device_train_batch_size,
        **devices_of(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=passes,
        bf16=uses_bfloat16(config.bf16),
        optim=config.optim,
        optim_args=config.optim_args,
        optimizer_in_backward=config.optimizer_in_backward,
        attention=attention,
        activation_checkpointing=config.activation_checkpointing,
        dropout=has_dropout(model_config),
        label_tokens=_target_length(data) if anatomy.encoder_decoder else None,
        frozen_dtype=storage_dtype(dtype),
        frozen_bits=config.frozen_bits,
        label_share=1.0 if anatomy.encoder_decoder else _label_share(data, length),
    )


def evaluation_of(config: RunConfig, data: Data, anatomy: Anatomy, model_config: Any) -> EvaluationWork:
    """The largest batches of the run's evaluations."""
    task, decoding = data.task, config.generation.keywords(config.max_new_tokens)
    rows = config.per_device_eval_batch_size or eval_batch_size(task.kind, model_config, data.eval_rows)
    generated = task.generate_rows if config.generate_rows is None else config.generate_rows
    questions = len(task.questions or task.eval)
    writes = task.kind is TaskKind.GENERATION and not config.streaming
    labelled = data.eval_rows.label_lengths
    language = bool(labelled) and task.kind is not TaskKind.TAGGING
    return EvaluationWork(
        rows=min(rows, len(data.eval_rows)),
        length=max(data.eval_rows.lengths),
        positions=max(labelled, default=1),
        width=anatomy.vocab_size if language else max(1, len(task.labels)),
        prompts=min(config.per_device_eval_batch_size or MOST_ROWS, generated, questions) if writes else 0,
        new_tokens=decoding["max_new_tokens"],
        beams=decoding.get("num_beams", 1),
        keeps=model_kind(model_config) == "decoder",
        texts=data.eval_rows.texts,
        stored=config.streaming,
    )


def assumed_evaluation(anatomy: Anatomy, workload: Workload, model_config: Any) -> EvaluationWork:
    """The evaluation of work whose rows are not read: rows of the workload's length, and no texts to write."""
    width = anatomy.head_linears[-1].out_features if anatomy.head_linears else 1
    positions = (workload.label_tokens or workload.length) if width == anatomy.vocab_size else 1
    rows = min(rows_that_fit(positions, width), workload.rows)
    keeps = model_kind(model_config) == "decoder"
    return EvaluationWork(rows, workload.length, positions, width, keeps=keeps, texts=workload.texts)


def evaluation_to_fit(config: RunConfig, data: Data, anatomy: Anatomy, model_config: Any) -> EvaluationWork | None:
    """The evaluation whose batches have to fit in the budget; None where their size is given, or memory is no size."""
    chosen = isinstance(config.budget.memory, str) and config.per_device_eval_batch_size is None
    return evaluation_of(config, data, anatomy, model_config) if chosen else None


def with_eval_batch(config: RunConfig, data: Data, applied: Applied) -> RunConfig:
    """The config with an evaluation's batch that fits in the budget, where the usual one does not.

    Args:
        config: with the settings that a planner chose.
        data: the run's rows.
        applied: what the plan did to the model.
    """
    work = evaluation_to_fit(config, data, applied.anatomy, applied.config)
    if work is None:
        return config
    workload = workload_of(config, data, applied.anatomy, applied.config, applied.base_dtype)
    limit = parse_size(str(config.budget.memory), "memory")
    rows = rows_within(limit, applied.plan, applied.anatomy, workload, work)
    fits = rows >= max(work.rows, work.prompts)
    return config if fits else config.model_copy(update={"per_device_eval_batch_size": rows})


def _expected_longest(lengths: Sequence[int], count: int) -> float:
    """The expected longest of `count` rows drawn at random."""
    total, below = 0.0, 0.0
    for position, length in enumerate(sorted(lengths), start=1):
        upto = (position / len(lengths)) ** count
        total += length * (upto - below)
        below = upto
    return total


def _label_share(data: Data, length: int) -> float:
    """The share of the positions, of `length` in a row, from which the loss reads: a decoder's are those before a
    label."""
    targets = data.rows.label_counts(shifted=data.task.kind is not TaskKind.TAGGING)
    if not len(targets):
        return 1.0
    return min(1.0, float(targets.sum()) / (len(targets) * length))


def _target_length(data: Data) -> int | None:
    lengths = data.rows.label_counts(shifted=False)
    return round(int(lengths.sum()) / len(lengths)) if len(lengths) else None
