"""The record of a run as it begins: what was asked, and what it is predicted to cost."""

from __future__ import annotations

from frostline.cost import Workload, has_dropout, predict, storage_dtype
from frostline.engine import fingerprint
from frostline.plan import document
from frostline.records import DataFacts, ModelFacts, RunRecord, now
from frostline.run._prepare import Data, Prepared, uses_bfloat16
from frostline.run._versions import versions
from frostline.tasks import IGNORED, TaskKind, majority_share


def opening_record(prepared: Prepared) -> RunRecord:
    """The record with which the run starts, status `running`."""
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    prediction = predict(applied.plan, applied.anatomy, workload_of(prepared))
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
        total_parameters=prediction.total_parameters,
        predicted={**prediction.document(), "assumes": dict(prediction.assumes)},
        notices=(*applied.notices, *_cut_notice(prepared)),
    )


def workload_of(prepared: Prepared) -> Workload:
    """The workload that a run's cost is predicted for."""
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    rows = len(data.rows)
    passes = config.steps * config.batch_size * config.gradient_accumulation / rows if config.steps else config.epochs
    return Workload(
        rows=rows,
        length=round(data.mean_length(config)),
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
    )


def _target_length(data: Data) -> int | None:
    targets = [row["labels"] for row in data.rows if isinstance(row["labels"], list)]
    lengths = [sum(label != IGNORED for label in labels) for labels in targets]
    return round(sum(lengths) / len(lengths)) if lengths else None


def _cut_notice(prepared: Prepared) -> list[str]:
    cut, rows = prepared.data.rows.truncated, len(prepared.data.rows)
    return [f"{cut} of {rows} training rows are cut to {prepared.config.max_length} tokens"] if cut else []
