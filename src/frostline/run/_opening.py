"""The record of a run as it begins: what was asked, and what it is predicted to cost."""

from __future__ import annotations

from typing import Any

from frostline.anatomy import fingerprint
from frostline.cost import predict, total_parameters
from frostline.plan import document
from frostline.records import DataFacts, ModelFacts, RunRecord, now
from frostline.run._prepare import Prepared
from frostline.run._streaming import streaming_notices
from frostline.run._versions import versions
from frostline.run._work import workload_of
from frostline.tasks import TaskKind, majority_share


def opening_record(prepared: Prepared) -> RunRecord:
    """The record with which the run starts, status `running`."""
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    task, lengths = data.task, data.rows.lengths
    return RunRecord(
        status="running",
        started=now(),
        config=prepared.asked.model_dump(mode="json"),
        chosen=prepared.chosen.choice,
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
            labels=tuple(task.labels) if task.kind is TaskKind.CLASSIFICATION else (),
        ),
        seed=config.seed,
        versions=versions(),
        trainable_parameters=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
        total_parameters=total_parameters(applied.plan, applied.anatomy),
        predicted=predicted_cost(prepared),
        notices=(
            *task.notices,
            *applied.notices,
            *_choice_notices(prepared),
            *_cut_notice(prepared),
            *_quantized_notice(prepared),
            *streaming_notices(config, task),
            *_cache_notice(prepared),
        ),
    )


def predicted_cost(prepared: Prepared) -> dict[str, Any]:
    """What the run is predicted to cost, with the activation cache as things stand (`trainer.cache_report`)."""
    applied, cached = prepared.trainer.applied, prepared.trainer.cache_report
    stored = cached.found / (cached.rows + cached.found) if cached.used else 0.0
    work = workload_of(prepared.config, prepared.data, applied.anatomy, applied.config, applied.base_dtype)
    reality = {
        "activation_cache": cached.used,
        "stored_share": stored,
        "loss_positions": not applied.plan.forward.layered,
    }
    workload = work.model_copy(update=reality)
    prediction = predict(applied.plan, applied.anatomy, workload, prepared.chosen.speed)
    return {**prediction.document(), "assumes": dict(prediction.assumes)}


def _choice_notices(prepared: Prepared) -> list[str]:
    """What a strategy measured and a planner chose, a line each."""
    chosen = prepared.chosen
    lines = list(chosen.lines)
    if chosen.probe is not None:
        seconds = "" if chosen.probe.seconds is None else f" in {chosen.probe.seconds:.3g} s"
        lines.insert(0, f"measured on {chosen.probe.rows} rows{seconds}, read at {chosen.probe.read}")
    return lines


def _quantized_notice(prepared: Prepared) -> list[str]:
    return [prepared.quantized.notice] if prepared.quantized else []


def _cut_notice(prepared: Prepared) -> list[str]:
    cut, rows = prepared.data.rows.truncated, len(prepared.data.rows)
    return [f"{cut} of {rows} training rows are cut to {prepared.config.max_length} tokens"] if cut else []


def _cache_notice(prepared: Prepared) -> list[str]:
    """What is expected of the activation cache, or why it is not used."""
    report = prepared.trainer.cache_report
    if (prepared.chosen.choice or {}).get("activation_cache") and not report.used:
        return [f"no activation cache, which the plan for the budget counts on: {report.reason}"]
    if prepared.config.frozen_bits is not None:
        return ["no activation cache: frozen_bits keeps the bottom, rounded, in every step"]
    if prepared.trainer.session.mode == "off" or prepared.trainer.applied.plan.boundary == 0:
        return []
    return [
        f"activation cache: {report.estimate}"
        if report.used
        else f"no activation cache: {report.estimate or report.reason}"
    ]
