"""The record of a run when it begins: its settings, and its predicted cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frostline.anatomy import fingerprint
from frostline.checkpoints import bfloat16_is_fast, rows_of_the_base
from frostline.core.places import places_of
from frostline.core.sizes import parse_size, size_text
from frostline.cost import evaluation_memory, optimizer_notice, predict_phases, total_parameters
from frostline.plan import document, phases
from frostline.records import DataFacts, ModelFacts, RunRecord, now
from frostline.run._command import command_line
from frostline.run._config import RunConfig, paths_of
from frostline.run._prepare import Prepared
from frostline.run._steps import steps_of
from frostline.run._streaming import streaming_notices
from frostline.run._trying import why_not_tried
from frostline.run._versions import versions
from frostline.run._work import evaluation_of, workload_of
from frostline.tasks import Task, TaskKind, majority_share, model_kind


def opening_record(prepared: Prepared) -> RunRecord:
    """The record with which the run starts, status `running`."""
    config, applied, data = prepared.config, prepared.trainer.applied, prepared.data
    task, lengths = data.task, data.rows.lengths
    predicted = predicted_cost(prepared)
    return RunRecord(
        status="running",
        started=now(),
        config=prepared.asked.model_dump(mode="json"),
        command=command_line(prepared.asked),
        chosen=prepared.chosen.choice,
        trials=prepared.chosen.trials,
        signals=None if prepared.chosen.probe is None else prepared.chosen.probe.document(),
        plan=document(applied.plan),
        model=ModelFacts(
            name=config.model,
            model_class=applied.anatomy.model_class,
            model_type=applied.anatomy.model_type,
            dtype=applied.base_dtype,
            blocks=len(applied.anatomy.blocks),
            fingerprint=fingerprint(applied.base),
            kind=model_kind(prepared.model.config),
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
            labels=tuple(task.labels),
            rows=_rows_of(task),
        ),
        seed=config.seed,
        places={path: places for path in paths_of(config) if (places := places_of(path, config.folder))},
        versions=versions(config.bf16),
        trainable_parameters=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
        total_parameters=total_parameters(applied.plan, applied.anatomy),
        predicted=predicted,
        notices=(
            *task.notices,
            *applied.notices,
            *_choice_notices(prepared),
            *_held_out_notice(prepared),
            *_precision_notice(prepared),
            *_resize_notice(prepared),
            *_chats_notice(prepared),
            *_cut_notice(prepared),
            *_quantized_notice(prepared),
            *_optimizer_notice(prepared),
            *streaming_notices(config, task),
            *_cache_notice(prepared),
            *evaluation_notice(prepared.asked, config, predicted),
        ),
    )


def _precision_notice(prepared: Prepared) -> tuple[str, ...]:
    if not prepared.config.bf16 or bfloat16_is_fast():
        return ()
    given = prepared.asked.bf16 is not None
    why = "leave bf16 out, and it is used where it is fast" if given else "the run began in it, and goes on in it"
    return (f"bf16: this machine has no bfloat16 of its own and imitates it, which can take many times as long: {why}",)


def _rows_of(task: Task) -> str:
    """What a row of the task is (`DataFacts.rows`)."""
    first = task.train[0]
    if task.kind is TaskKind.EXTRACTION:
        answered = all(example.answers for part in (task.train, task.eval) for example in part)
        return "pairs" if answered else "questions"
    return "chats" if first.messages else "pairs" if first.pair is not None else "texts"


def predicted_cost(prepared: Prepared) -> dict[str, Any]:
    """The predicted cost of the run, with what is known of its activation cache (`trainer.cache_report`)."""
    applied, cached = prepared.trainer.applied, prepared.trainer.cache_report
    stored = cached.found / (cached.rows + cached.found) if cached.used else 0.0
    work = workload_of(prepared.config, prepared.data, applied.anatomy, applied.config, applied.base_dtype)
    trainer, schedule = prepared.trainer, prepared.chosen.schedule
    begins = not trainer.changes and not schedule.settled and trainer.session.mode != "off"
    known = {
        "activation_cache": cached.used or begins,  # a moving plan uses one as soon as something is frozen
        "stored_share": stored,
        "loss_positions": not applied.plan.forward.layered,
    }
    workload = work.model_copy(update=known)
    steps = steps_of(trainer.args, len(prepared.data.rows))
    changes = [(change.step, change.plan) for change in trainer.changes]
    plans = [(0, schedule.first), *changes] if changes or schedule.settled else phases(schedule, steps)
    prediction = predict_phases(plans, steps, applied.anatomy, workload, prepared.chosen.speed)
    evaluation = evaluation_of(prepared.config, prepared.data, applied.anatomy, applied.config)
    return {
        **prediction.document(),
        "evaluation_memory_bytes": evaluation_memory(applied.plan, applied.anatomy, workload, evaluation),
        "assumes": dict(prediction.assumes),
    }


def _choice_notices(prepared: Prepared) -> list[str]:
    """What a strategy measured and a planner chose, a line each."""
    chosen = prepared.chosen
    lines = list(chosen.lines)
    if chosen.probe is not None:
        seconds = "" if chosen.probe.seconds is None else f" in {chosen.probe.seconds:.3g} s"
        lines.insert(0, f"measured on {chosen.probe.rows} rows{seconds}, at {chosen.probe.read}")
    return lines


def _held_out_notice(prepared: Prepared) -> list[str]:
    """Which rows judge the trials, or why there are none."""
    data = prepared.data
    if data.held_out is None:
        why = why_not_tried(prepared.config, len(data.rows))
        return [f"a rule chose the plan, without trials: {why}"] if why else []
    return [f"{len(data.held_out)} rows judge the trials and the run; {len(data.rows)} rows train"]


def evaluation_notice(asked: RunConfig, config: RunConfig, predicted: Mapping[str, Any]) -> list[str]:
    """What became of the evaluation where the budget's memory is a size.

    Args:
        asked: the config as it was given.
        config: the same with what was chosen.
        predicted: the predicted cost.
    """
    memory, needs = config.budget.memory, predicted["evaluation_memory_bytes"]
    if not isinstance(memory, str):
        return []
    if needs > parse_size(memory, "memory"):
        return [
            f"evaluation is predicted to need {size_text(needs)}, more than the budget's memory={memory}: use a "
            "smaller per_device_eval_batch_size, fewer generate_rows, or a larger budget"
        ]
    rows = config.per_device_eval_batch_size
    if rows == asked.per_device_eval_batch_size:
        return []
    return [f"evaluation in batches of {rows}, so that it needs no more than memory={memory}"]


def _quantized_notice(prepared: Prepared) -> list[str]:
    return [prepared.quantized.notice] if prepared.quantized else []


def _optimizer_notice(prepared: Prepared) -> list[str]:
    notice = optimizer_notice(prepared.config.optim)
    return [notice] if notice else []


def _resize_notice(prepared: Prepared) -> list[str]:
    """What became of `resize_embeddings`."""
    if not prepared.config.resize_embeddings:
        return []
    before, rows = rows_of_the_base(prepared.model), prepared.model.get_input_embeddings().weight.shape[0]
    if before is None:
        return [f"resize_embeddings: nothing to do, the model has {rows} embeddings"]
    return [f"resize_embeddings: {rows} embeddings in place of {before}; the new ones are drawn by transformers"]


def _chats_notice(prepared: Prepared) -> list[str]:
    """That chats have several rows, where the template changes earlier turns."""
    chats, rows = prepared.data.task.train, len(prepared.data.rows)
    if not any(chat.messages for chat in chats[:1]) or rows == len(chats):
        return []
    return [
        f"{len(chats)} chats make {rows} training rows: the chat template changes earlier turns of the assistant (it "
        "may drop their thinking), so each of them is learned in a row that ends with it"
    ]


def _cut_notice(prepared: Prepared) -> list[str]:
    cut, rows = prepared.data.rows.truncated, len(prepared.data.rows)
    return [f"{cut} of {rows} training rows are truncated to {prepared.config.max_length} tokens"] if cut else []


def _cache_notice(prepared: Prepared) -> list[str]:
    """What is expected of the activation cache, or why it is not used."""
    report = prepared.trainer.cache_report
    if (prepared.chosen.choice or {}).get("activation_cache") and not report.used:
        return [f"no activation cache, although the plan for the budget needs it: {report.reason}"]
    if prepared.config.frozen_bits is not None:
        return ["no activation cache: with frozen_bits the quantized bottom runs in every step"]
    if prepared.trainer.session.mode == "off" or prepared.trainer.applied.plan.boundary == 0:
        return []
    return [
        f"activation cache: {report.estimate}"
        if report.used
        else f"no activation cache: {report.reason if report.declined else report.estimate or report.reason}"
    ]
