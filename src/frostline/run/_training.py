"""One run from config to record: model, data, schedule, trainer, evaluation."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from frostline.adapters import router_statistics
from frostline.checkpoints import quiet_libraries, save_delta, trained_tensors, write_run_card
from frostline.core.errors import ConfigError, DataError, FrostlineError, first_line
from frostline.core.files import atomic_file, disk_errors, private, read_json, write_json, write_text
from frostline.core.sizes import size_text
from frostline.engine import MemoryMeter, PeakOfSteps, ProgressBar, Trainer, start_bar
from frostline.model_card import OWN_README
from frostline.plan import Plan, document, save_plan, strip_over_time
from frostline.processes import Processes, running, start
from frostline.records import RECORD_FILE, Measured, RunMetrics, RunRecord, now, read_record, write_record
from frostline.rows import values_of
from frostline.run._choosing import Chosen
from frostline.run._config import RunConfig
from frostline.run._device import autocast
from frostline.run._folder import check_several, checkpoint_to_resume, own_folder_of_all
from frostline.run._judge import JudgedTrainer, clock_of, drop_checkpoints
from frostline.run._opening import opening_record, predicted_cost
from frostline.run._phases import Phases
from frostline.run._prepare import Prepared, prepare, read_data
from frostline.run._split import split_notice, split_report
from frostline.run._trying import fall_from, judged, spent_line, try_plans, watch
from frostline.run._work import Data, step_rows_of
from frostline.tasks import Evaluation, Task, evaluate

PLAN_FILE = "plan.yaml"
BEFORE_FILE = "before.json"
PREDICTIONS_FILE = "predictions.jsonl"
ROWS_FILE = "rows.json"


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> RunRecord:
    """Train what `config` says and record it in its folder: `run.json`, the plan, the delta, the answers.

    Args:
        config: the run's settings.
        resume: continue from the folder's last checkpoint, and end with the weights of a run that was never stopped. A
            run that has saved no checkpoint starts again.
        console: where progress is shown; None: nowhere.

    Raises `UserError` for wrong input, or where another process works in the folder, before anything is written, and
    `TrainingError` when the loss is not a number; what was saved before stays valid.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"train: give a RunConfig, not {type(config).__name__}: frostline.train(frostline.RunConfig(model=..., "
            "task=..., ...))"
        )
    silent = Console(stderr=True, quiet=True)
    group = start(config.training.get("ddp_timeout"))
    with private(), own_folder_of_all(config.folder, group):
        return _train(config, resume, (console or silent) if group.first else silent, group)


def _train(config: RunConfig, resume: bool, console: Console, group: Processes) -> RunRecord:
    folder = config.folder
    with group.together():
        checkpoint = group.same(checkpoint_to_resume(folder, config, resume))
        before = read_record(folder) if resume and (folder / RECORD_FILE).is_file() else None
        check_several(config, group)
    if config.threads:
        torch.set_num_threads(config.threads)
    phases = Phases()
    with MemoryMeter() as memory:
        with console.status("reading the data"), group.together():
            data = judged(config, read_data(config, phases))
            if len(set(group.every(data.task.fingerprint))) > 1:
                raise DataError(f"task: the processes read other rows than each other from {config.task}: use one file")
        memory.restart()
        chosen = None
        if data.held_out is not None and before is None:
            with phases.of("trials"):
                chosen = try_plans(config, data, _attempt, console)
            checkpoint = None if chosen.checkpoint is None else str(chosen.checkpoint)
        with phases.of("loading"), console.status("loading the model and reading the rows"):
            prepared = prepare(config, data, before, chosen)
        record = opening_record(prepared)
        opening = record
        if not group.once(lambda: write_run_card(folder, opening)):
            record = record.model_copy(update={"notices": (*record.notices, OWN_README)})
        for notice in record.notices:
            console.print(f"note: {notice}")
        group.once(lambda: _write_opening(record, data.task, folder))
        try:
            record = _run(prepared, record, folder, checkpoint, memory, phases, console)
        except BaseException as error:
            if not group.first:
                raise
            failed = record.model_copy(update={"status": "failed", "error": _one_line(error), "finished": now()})
            with suppress(FrostlineError, OSError):
                write_record(failed, folder)
                write_run_card(folder, failed)
            raise
        if group.first:
            write_run_card(folder, record)  # the run is finished, whatever happens here
        return record


def _write_opening(record: RunRecord, task: Task, folder: Path) -> None:
    write_record(record, folder)
    save_plan(Plan.read(record.plan), folder / PLAN_FILE)
    _write_rows(task, folder)


def _attempt(config: RunConfig, data: Data, chosen: Chosen) -> JudgedTrainer:
    """The trainer of a trial."""
    return cast(JudgedTrainer, prepare(config, data, chosen=chosen).trainer)


def _run(
    prepared: Prepared,
    record: RunRecord,
    folder: Path,
    checkpoint: str | None,
    memory: MemoryMeter,
    phases: Phases,
    console: Console,
) -> RunRecord:
    config, trainer, group = prepared.config, prepared.trainer, running()
    clock = clock_of(isinstance(config.budget.time, str))
    before = {} if config.streaming else _before(prepared, folder, checkpoint, phases, console)
    memory.restart_peak()
    opened = clock()
    with phases.of("caching"):
        record = _caching_pass(prepared, record, console)
    spent = prepared.seconds + clock() - opened
    passed_before = trainer.session.active
    caching_peak = memory.peak_bytes if passed_before else None
    before_seconds = trainer.cache_report.seconds
    if config.streaming:  # the model can be evaluated only on rows that passed the bottom
        before = _before(prepared, folder, checkpoint, phases, console)
    bar = ProgressBar(console, config.strategy, memory, prepared.steps, lambda: trainer.last_loss)
    trainer.add_callback(bar)
    if trainer.sharding is not None:
        trainer.add_callback(PeakOfSteps(memory))
    watched = watch(trainer, config) if isinstance(trainer, JudgedTrainer) else None
    memory.restart_peak()
    try:
        begun, opened = time.perf_counter(), clock()
        prepared.steps.begin(before_seconds)
        with phases.of("training"), quiet_libraries():
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds, spent = time.perf_counter() - begun + before_seconds, spent + clock() - opened
    finally:
        bar.close()
    if watched is not None and watched.turned:
        return _fall(prepared, record, folder, watched.best, spent, memory, phases, console)
    record = _what_became(prepared, record, console, spent)
    routers = router_statistics(prepared.model) or None
    split = split_report(trainer)
    peak = max(group.every(memory.peak_bytes)) if split is None else sum(split.peak_memory_bytes.values())
    with phases.of("saving"):
        _save(prepared, folder)
        if group.first and watched is not None and config.save_steps is None:
            drop_checkpoints(folder, 0)
        evaluated = replace(prepared, model=trainer.whole_model())
    after = _measure(evaluated, phases, console)
    median = prepared.steps.median
    tokens = step_rows_of(config) * prepared.data.mean_length(config) * (1 if split is None else split.clients)
    applied = trainer.applied
    finished = record.model_copy(
        update={
            "plan": document(applied.plan),
            "changes": tuple(change.document() for change in trainer.changes),
            "strip": _strip(trainer),
            "trainable_parameters": sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
            "status": "finished",
            "finished": now(),
            "measured": Measured(
                train_seconds=seconds,
                seconds_per_step=median,
                caching_seconds=trainer.cache_report.seconds,
                peak_memory_bytes=peak,
                steps=trainer.state.global_step,
                engine="FSDP2" if trainer.sharding is not None else "DDP" if group.count > 1 else "one process",
                processes=group.count,
                tokens_per_second=tokens / median if median else None,
                cpu_seconds_per_step=prepared.steps.cpu_median if split is None else None,  # others trained
                resumed_at_step=trainer.state.global_step - len(prepared.steps.seconds),
                selection_seconds=prepared.chosen.seconds + trainer.seconds_until_settled,
                caching_peak_memory_bytes=caching_peak,
                run_peak_memory_bytes=max(group.every(memory.whole_peak_bytes)),
                seconds=phases.seconds,
            ),
            "split": None if split is None else split.document(),
            "routers": routers,
            "metrics": RunMetrics(before=before, after=after.metrics, history=_history(trainer)),
        }
    )

    def write_end() -> RunRecord:
        write_text(folder / PREDICTIONS_FILE, after.json_lines())
        save_plan(applied.plan, folder / PLAN_FILE)
        write_record(finished, folder)
        return finished

    return group.once(write_end)


def _save(prepared: Prepared, folder: Path) -> None:
    group = running()
    trained = trained_tensors(prepared.model)  # in all processes: they may share it
    with group.together(), disk_errors(folder):
        if group.first:
            prepared.data.tokenizer.save_pretrained(folder)
            save_delta(prepared.model, folder, tensors=trained)


def _fall(
    prepared: Prepared,
    record: RunRecord,
    folder: Path,
    step: int,
    spent: float,
    memory: MemoryMeter,
    phases: Phases,
    console: Console,
) -> RunRecord:
    """Go back to the step in which a run was best, since its held-out loss has turned, and let its rate fall."""
    chosen = fall_from(prepared.chosen, step)
    line = f"the held-out loss has risen since step {step}: the learning rate falls from there, and time is left over"
    console.print(f"note: {line}")
    record = record.model_copy(update={"chosen": chosen.choice, "notices": (*record.notices, line)})
    running().once(lambda: write_record(record, folder))
    with phases.of("loading"):
        again = prepare(prepared.asked, prepared.data, record, chosen)
    again = replace(again, seconds=again.seconds + spent)
    return _run(again, record, folder, str(chosen.checkpoint), memory, phases, console)


def _strip(trainer: Trainer) -> tuple[str, ...]:
    if not trainer.changes:
        return ()
    plans = [(0, trainer.applied.first), *((change.step, change.plan) for change in trainer.changes)]
    return strip_over_time(plans, trainer.state.global_step)


def _what_became(prepared: Prepared, record: RunRecord, console: Console, spent: float) -> RunRecord:
    """The record with the notices of training, and with the cost of the plan that it ended with.

    `spent` are the seconds that the run took after its trials, if it made some.
    """
    trainer = prepared.trainer
    notices = [notice for notice in trainer.notices if notice not in record.notices]
    if trainer.changes:
        notices.append(f"from step {trainer.changes[-1].step} on: activation cache: {trainer.cache_report.reason}")
        record = record.model_copy(update={"predicted": predicted_cost(prepared)})
    split = split_report(trainer)
    if split is not None:
        notices.append(split_notice(split))
    if (line := spent_line(prepared.chosen, spent)) is not None:
        notices.append(line)
    for notice in notices:
        console.print(f"note: {notice}")
    return record.model_copy(update={"notices": (*record.notices, *notices)})


def _caching_pass(prepared: Prepared, record: RunRecord, console: Console) -> RunRecord:
    """Fill the activation cache, if one is to be used; the record then says what became of it."""
    session = prepared.trainer.session
    if not session.report.used:
        return record
    with quiet_libraries(), start_bar(console) as bar:
        session.stage, session.progress = bar.stage, bar.rows
        session.begin()
    freed = f", {size_text(session.report.freed_bytes)} of weights left memory" if session.report.freed_bytes else ""
    notice = session.report.notice or f"activation cache {session.report.reason}{freed}"
    console.print(f"note: {notice}")
    # The prediction changes where the activation cache is not used after all, since a check of it failed.
    return record.model_copy(
        update={"notices": (*record.notices, notice), "predicted": predicted_cost(prepared)},
    )


def _before(
    prepared: Prepared, folder: Path, checkpoint: str | None, phases: Phases, console: Console
) -> dict[str, float]:
    """Quality before the first step; a resumed run reads it from its file, since its model has trained already."""
    path, group = folder / BEFORE_FILE, running()
    known = group.once(lambda: read_json(path, "quality before training") if checkpoint and path.is_file() else None)
    if known is not None:
        return dict(known)
    metrics = _measure(prepared, phases, console).metrics
    group.once(lambda: write_json(path, metrics))
    return metrics


def _measure(prepared: Prepared, phases: Phases, console: Console) -> Evaluation:
    config = prepared.config
    group = running()
    with phases.of("evaluation"), console.status("evaluating"), autocast(config.bf16), group.together():
        return evaluate(
            prepared.model,
            prepared.data.tokenizer,
            prepared.data.task,
            batch_size=config.per_device_eval_batch_size,
            max_length=config.max_length,
            generate_rows=0 if config.streaming else config.generate_rows,
            max_new_tokens=config.max_new_tokens,
            decoding=config.generation,
            processes=group,
        )


def _history(trainer: Trainer) -> tuple[dict[str, float], ...]:
    return tuple({key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history)


def _write_rows(task: Task, folder: Path) -> None:
    """Write which rows of the source the run uses, by the ids of the examples."""
    parts = {"train": task.train, "eval": task.eval, "questions": task.questions}
    with atomic_file(folder / ROWS_FILE) as path, path.open("w", encoding="utf-8") as file:
        for number, (name, part) in enumerate(parts.items()):
            file.write(f"{',' if number else '{'}\n  {json.dumps(name)}: [")
            for place, own in enumerate(values_of(part, "id", lambda example: example.id)):
                file.write(f"{',' if place else ''}\n    {json.dumps(own, ensure_ascii=False)}")
            file.write("\n  ]" if part else "]")
        file.write("\n}\n")


def _one_line(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error)
