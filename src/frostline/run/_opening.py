"""The record of a run as it begins: what was asked, and what it is predicted to cost."""

from __future__ import annotations

from typing import Any

from frostline.cost import Workload, has_dropout, predict, storage_dtype, total_parameters
from frostline.engine import fingerprint
from frostline.plan import document
from frostline.records import DataFacts, ModelFacts, RunRecord, now
from frostline.run._prepare import Data, Prepared, uses_bfloat16
from frostline.run._streaming import streaming_notices
from frostline.run._versions import versions
from frostline.tasks import IGNORED, TaskKind, majority_share


def opening_record(prepared: Prepared) -> RunRecord:
    """The record with which the run starts, status `running`."""
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    task, lengths = data.task, data.rows.lengths
    return RunRecord(
        status="running",
        started=now(),
        config=config.model_dump(mode="json"),
        plan=document(applied.plan),
        model=ModelFacts(
            name=config.model,
            model_class=applied.anatomy.model_class,
            model_type=applied.anatomy.model_type,
            dtype=applied.base_dtype,
            blocks=len(applied.anatomy.blocks),
            fingerprint=fingerprint(applied.base),
        ),
        data=DataFacts(
            task=task.name,
            kind=str(task.kind),
            source=task.source,
            train_rows=len(task.train),
            eval_rows=len(task.eval),
            truncated_rows=data.rows.truncated,
            mean_length=sum(lengths) / len(lengths),
            metric=task.metric,
            majority_share=majority_share(task) if task.kind is TaskKind.CLASSIFICATION else None,
            fingerprint=task.fingerprint,
        ),
        seed=config.seed,
        versions=versions(),
        trainable_parameters=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
        total_parameters=total_parameters(applied.plan, applied.anatomy),
        predicted=predicted_cost(prepared),
        notices=(
            *applied.notices,
            *_cut_notice(prepared),
            *_quantised_notice(prepared),
            *streaming_notices(config, task),
            *_cold_notice(prepared),
        ),
    )


def predicted_cost(prepared: Prepared) -> dict[str, Any]:
    """What the run is predicted to cost, with the cold store as things stand (`trainer.cold.report`)."""
    applied, cold = prepared.trainer.applied, prepared.trainer.cold.report
    stored = cold.found / (cold.rows + cold.found) if cold.used else 0.0
    workload = workload_of(prepared, cold_store=cold.used, stored_share=stored, reads_only=True)
    prediction = predict(applied.plan, applied.anatomy, workload)
    return {**prediction.document(), "assumes": dict(prediction.assumes)}


def workload_of(
    prepared: Prepared, *, cold_store: bool = False, stored_share: float = 0.0, reads_only: bool = False
) -> Workload:
    """The workload that a run's cost is predicted for.

    `cold_store`: the run trains from one, which holds `stored_share` of the rows before the cold pass.
    `reads_only`: only what the loss reads is computed.
    """
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    rows = len(data.rows)
    passes = config.steps * config.batch_size * config.gradient_accumulation / rows if config.steps else config.epochs
    length = round(data.mean_length(config))
    return Workload(
        rows=rows,
        length=length,
        batch=config.batch_size,
        accumulation=config.gradient_accumulation,
        epochs=passes,
        dtype="bfloat16" if uses_bfloat16(config.precision) else "float32",
        optimizer=config.optimizer,
        attention="eager" if prepared.model.config._attn_implementation == "eager" else "sdpa",
        checkpointing=config.checkpointing,
        dropout=has_dropout(applied.config),
        label_tokens=_target_length(data) if applied.anatomy.encoder_decoder else None,
        frozen_dtype=storage_dtype(applied.base_dtype),
        cold_store=cold_store,
        stored_share=stored_share,
        label_share=1.0 if applied.anatomy.encoder_decoder else _label_share(data, length),
        reads_only=reads_only,
    )


def _label_share(data: Data, length: int) -> float:
    """The share of a decoder's positions, of `length` in a row, from which the loss reads: those before a label."""
    targets = [row["labels"][1:] for row in data.rows if isinstance(row["labels"], list)]
    if not targets:
        return 1.0
    labels = sum(sum(label != IGNORED for label in row) for row in targets)
    return min(1.0, float(labels) / (len(targets) * length))


def _target_length(data: Data) -> int | None:
    targets = [row["labels"] for row in data.rows if isinstance(row["labels"], list)]
    lengths = [sum(label != IGNORED for label in labels) for labels in targets]
    return round(sum(lengths) / len(lengths)) if lengths else None


def _quantised_notice(prepared: Prepared) -> list[str]:
    return [prepared.quantised.notice] if prepared.quantised else []


def _cut_notice(prepared: Prepared) -> list[str]:
    cut, rows = prepared.data.rows.truncated, len(prepared.data.rows)
    return [f"{cut} of {rows} training rows are cut to {prepared.config.max_length} tokens"] if cut else []


def _cold_notice(prepared: Prepared) -> list[str]:
    """What is expected of the cold store, or why it is not used."""
    report = prepared.trainer.cold.report
    if prepared.config.frozen_bits is not None:
        return ["no cold store: frozen_bits keeps the bottom, rounded, in every step"]
    if prepared.trainer.cold.mode == "off" or prepared.trainer.applied.plan.boundary == 0:
        return []
    return [f"cold store: {report.estimate}" if report.used else f"no cold store: {report.estimate or report.reason}"]
