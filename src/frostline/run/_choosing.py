"""The strategy of a run chooses: what it may measure, and what comes with its choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frostline.anatomy import Anatomy
from frostline.core.sizes import parse_size
from frostline.cost import EvaluationWork, Speed, Workload
from frostline.engine import same_for_all
from frostline.plan import FixedSchedule, Plan, Schedule, Split, keep_dropout
from frostline.processes import running
from frostline.records import RunRecord
from frostline.run._calibrate import calibrate
from frostline.run._config import RunConfig
from frostline.run._probing import LoadedModel, measure_loaded
from frostline.run._work import Data
from frostline.signals import Probe, choose_signals
from frostline.strategies import Budget, Measure, Situation, make_selection
from frostline.tasks import draw_rows

PLANNED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "activation_checkpointing",
    "activation_cache",
)
"""The settings of a run that a planner chooses with the plan."""
SPENT = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "training")
"""Those that come with a time that is spent."""


@dataclass(frozen=True)
class Chosen:
    """What a strategy chose for a run.

    Attributes:
        schedule: what trains, and when.
        config: the run's config, with the settings that a planner chose (`PLANNED`).
        choice: what the planner chose, and the alternatives, as plain data.
        lines: the same as text.
        split: how the training is split, if it is.
        probe: what the strategy measured.
        speed: the calibrated speed of this machine.
        seconds: the time that measuring and planning took.
        trials: the trials that were made to choose.
        first_steps: only the rows of so many steps pass the frozen bottom before training; None: all rows.
        checkpoint: what the training goes on from, where trials were made.
    """

    schedule: Schedule
    config: RunConfig
    choice: dict[str, Any] | None
    lines: tuple[str, ...] = ()
    split: Split | None = None
    probe: Probe | None = None
    speed: Speed | None = None
    seconds: float = 0.0
    trials: tuple[dict[str, Any], ...] = ()
    first_steps: int | None = None
    checkpoint: Path | None = None


def choose(
    config: RunConfig,
    anatomy: Anatomy,
    workload: Callable[[], Workload],
    steps: int,
    measure_blocks: Measure,
    model_config: Any,
    model_class: Any,
    evaluation: EvaluationWork | None = None,
) -> Chosen:
    """The schedule of a run's strategy; of several processes, what the first of them chose.

    Args:
        config: the run's config.
        anatomy: of the model.
        workload: gives the work of the run, if it is needed.
        steps: optimizer steps of the run.
        measure_blocks: measures the model's blocks on rows of the task.
        model_config: the model's own config, for calibration.
        model_class: the model's class, for calibration.
        evaluation: what has to fit in the budget beside training (`evaluation_to_fit`).

    Raises `UserError` when the strategy cannot choose, and `PlanError` when no plan fits the budget.
    """
    begun = time.perf_counter()
    probes: list[Probe] = []
    spent = 0.0

    def observed(signals: Sequence[str] | None, rows: int) -> Probe:
        nonlocal spent
        asked = time.perf_counter()
        probes.append(measure_blocks(signals, rows))
        spent += time.perf_counter() - asked
        return probes[-1]

    counts = config.budget.limits or config.calibrate
    work = workload() if counts else None
    situation = situation_of(config, anatomy, work, evaluation)
    speed = calibrate(model_config, model_class, situation.workload) if config.calibrate else None
    situation = replace(situation, measure=observed, speed=speed, steps=steps)
    with running().together():
        selection = make_selection(config.strategy, situation, config.strategy_options)
    choice = selection.choice
    lines = [] if choice is None else [f"{label}: {line}" for label, line in choice.lines()]
    seconds = sum(probe.seconds or 0.0 for probe in probes)
    if choice is not None:
        seconds += time.perf_counter() - begun - spent
        planned = {name: getattr(choice.workload, name) for name in PLANNED}
        if config.strategy == "auto" and config.max_steps is None:
            planned["num_train_epochs"] = choice.workload.num_train_epochs
        if config.strategy == "auto" and "learning_rate" not in config.model_fields_set:
            planned["learning_rate"] = choice.learning_rate
        config = with_planned(config, planned)
    found = Chosen(
        schedule=keep_dropout(selection.schedule) if config.frozen_dropout else selection.schedule,
        config=config,
        choice=None if choice is None else {**choice.document(), **_set(config), "lines": lines},
        lines=tuple(lines),
        split=selection.split,
        probe=probes[-1] if probes else None,
        speed=situation.speed,
        seconds=seconds,
    )
    schedule = same_for_all(found.schedule)
    return replace(running().same(replace(found, schedule=FixedSchedule(schedule.first))), schedule=schedule)


def as_planned(config: RunConfig, record: RunRecord) -> RunConfig:
    """The config of a run that is resumed, whose strategy gave the plan, with the settings that were chosen for it."""
    chosen = record.chosen or {}
    return with_planned(config, {name: chosen[name] for name in PLANNED}).model_copy(update={"budget": Budget()})


def chosen_before(config: RunConfig, record: RunRecord) -> Chosen:
    """What a planner chose for a run that is resumed, the plan too."""
    assert record.chosen is not None
    planned = {name: record.chosen[name] for name in (*PLANNED, *SPENT) if name in record.chosen}
    return Chosen(
        FixedSchedule(Plan.read(record.plan)),
        with_planned(config, planned),
        record.chosen,
        seconds=record.chosen.get("tried_seconds", 0.0),
        trials=record.trials,
    )


def situation_of(
    config: RunConfig, anatomy: Anatomy, workload: Workload | None, evaluation: EvaluationWork | None = None
) -> Situation:
    """What a planner knows of a run before anything is measured.

    Args:
        config: the run's config.
        anatomy: of the model.
        workload: the work of the run (`workload_of`), or None where no cost is counted.
        evaluation: what has to fit in the budget beside training; its batches may become smaller, down to one row.
    """
    # The run computes only at loss positions; full fine-tuning, which it is compared with, at all of them.
    work = Workload() if workload is None else workload.model_copy(update={"loss_positions": True})
    store = _asked_store(config) if config.budget.limits else None
    if store is not None:
        work = work.model_copy(update={"activation_cache": store})
    decided = {"activation_cache"} if store is not None else set()
    decided |= {"steps"} if config.max_steps is not None else set()
    decided |= {"untie"} if config.streaming else set()
    return Situation(
        anatomy,
        config.seed,
        budget=_with_disk(config),
        workload=work,
        evaluation=None if evaluation is None else evaluation.at_most(1),
        decided=frozenset(decided),
    )


def measure_here(
    load: Callable[[], LoadedModel], bare: Any, anatomy: Anatomy, config: RunConfig, data: Data
) -> Measure:
    """What measures the run's model on rows of its task, drawn by the run's seed.

    Args:
        load: loads the model, when it is needed.
        bare: the same model, which may be without weights.
        anatomy: of the model.
        config: the run's config.
        data: the run's rows.
    """

    def measure_blocks(signals: Sequence[str] | None, rows: int) -> Probe:
        sample = draw_rows(data.rows.rows, rows, config.seed, "train rows")
        chosen = choose_signals(bare, anatomy, sample, signals, streaming=config.streaming)
        return measure_loaded(load(), (config.model, data.task), sample, data.tokenizer, chosen)

    return measure_blocks


def _asked_store(config: RunConfig) -> bool | None:
    """Whether the run trains from an activation cache; None where its config leaves that open."""
    if config.streaming or config.activation_cache == "on":
        return True
    return False if config.activation_cache == "off" or config.frozen_bits else None


def _with_disk(config: RunConfig) -> Budget:
    """The budget, with the limit of all activation caches in it."""
    limit, own = config.activation_cache_bytes, config.budget.disk
    if limit is None or not config.budget.limits or (own is not None and parse_size(own, "disk") <= limit):
        return config.budget
    return config.budget.model_copy(update={"disk": config.activation_cache_limit})


def _set(config: RunConfig) -> dict[str, Any]:
    """What of a run's length and rate a planner set."""
    return {name: getattr(config, name) for name in SPENT if name in config.model_fields_set}


def with_planned(config: RunConfig, planned: Mapping[str, Any]) -> RunConfig:
    """The config with what a planner chose besides the plan. An activation cache that it chose may prove impossible."""
    keeps = planned["activation_cache"] or config.frozen_bits
    return config.model_copy(update={**planned, "activation_cache": config.activation_cache if keeps else "off"})
