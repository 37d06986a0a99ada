"""A run's strategy chooses: what it may look at, and what comes with its choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.anatomy import Anatomy
from frostline.core.sizes import parse_size
from frostline.cost import Speed, Workload
from frostline.plan import FixedSchedule, Plan, Schedule, Split
from frostline.records import RunRecord
from frostline.run._calibrate import calibrate
from frostline.run._config import RunConfig
from frostline.run._probing import LoadedModel, measure_loaded
from frostline.run._work import Data
from frostline.signals import Probe, choose_signals
from frostline.strategies import Budget, Measure, Situation, make_selection
from frostline.tasks import draw_rows


@dataclass(frozen=True)
class Chosen:
    """What a strategy chose for a run.

    `config` is the run's, with the batch, accumulation, checkpointing and activation cache that a planner chose;
    `choice` is all that it chose and over what, as plain data and in `lines`. `split` is how the training is split.
    `probe` is what the strategy measured, `speed` what was calibrated, `seconds` the time that measuring (when it was
    done) and planning took.
    """

    schedule: Schedule
    config: RunConfig
    choice: dict[str, Any] | None
    lines: tuple[str, ...] = ()
    split: Split | None = None
    probe: Probe | None = None
    speed: Speed | None = None
    seconds: float = 0.0


def choose(
    config: RunConfig,
    anatomy: Anatomy,
    workload: Callable[[], Workload],
    measure_blocks: Measure,
    model_config: Any,
    model_class: Any,
) -> Chosen:
    """The schedule of a run's strategy. Raises `UserError` when the strategy cannot choose, or no plan fits."""
    begun = time.perf_counter()
    probes: list[Probe] = []
    spent = 0.0

    def observed(signals: Sequence[str] | None, rows: int) -> Probe:
        nonlocal spent
        asked = time.perf_counter()
        probes.append(measure_blocks(signals, rows))
        spent += time.perf_counter() - asked
        return probes[-1]

    # The run computes only what its loss reads; what it is compared with computes all.
    counts = config.budget.limits or config.calibrate
    work = workload().model_copy(update={"loss_positions": True}) if counts else Workload()
    store = _asked_store(config) if config.budget.limits else None
    if store is not None:
        work = work.model_copy(update={"activation_cache": store})
    situation = Situation(
        anatomy,
        config.seed,
        measure=observed,
        budget=_with_disk(config),
        workload=work,
        speed=calibrate(model_config, model_class, work) if config.calibrate else None,
        decided=frozenset() if store is None else frozenset({"activation_cache"}),
    )
    selection = make_selection(config.strategy, situation, config.strategy_options)
    choice = selection.choice
    seconds = sum(probe.seconds or 0.0 for probe in probes)
    if choice is not None:
        seconds += time.perf_counter() - begun - spent
        work = choice.workload
        config = _with(config, work.batch, work.accumulation, work.checkpointing, work.activation_cache)
    return Chosen(
        schedule=selection.schedule,
        config=config,
        choice=None if choice is None else choice.document(),
        lines=() if choice is None else tuple(f"{label}: {line}" for label, line in choice.lines()),
        split=selection.split,
        probe=probes[-1] if probes else None,
        speed=situation.speed,
        seconds=seconds,
    )


def chosen_before(config: RunConfig, record: RunRecord) -> Chosen:
    """What a planner chose for a run that now goes on."""
    assert record.chosen is not None
    settings = {key: record.chosen[key] for key in ("batch", "accumulation", "checkpointing", "activation_cache")}
    return Chosen(FixedSchedule(Plan.read(record.plan)), _with(config, **settings), record.chosen)


def measure_here(
    load: Callable[[], LoadedModel], bare: Any, anatomy: Anatomy, config: RunConfig, data: Data
) -> Measure:
    """Measures the run's model on rows of its task that are drawn by its seed.

    `load` gives the model when it is wanted; `bare` is the same one, which may be without weights.
    """

    def measure_blocks(signals: Sequence[str] | None, rows: int) -> Probe:
        sample = draw_rows(list(data.rows.rows), rows, config.seed, "train")
        chosen = choose_signals(bare, anatomy, sample, signals, streaming=config.streaming)
        return measure_loaded(load(), (config.model, data.task), sample, data.tokenizer, chosen)

    return measure_blocks


def _asked_store(config: RunConfig) -> bool | None:
    """Whether the run trains from an activation cache, where its config decides."""
    if config.streaming or config.activation_cache == "on":
        return True
    return False if config.activation_cache == "off" or config.frozen_bits else None


def _with_disk(config: RunConfig) -> Budget:
    """The budget, which the limit of all stores belongs to."""
    limit, own = config.activation_cache_bytes, config.budget.disk
    if limit is None or not config.budget.limits or (own is not None and parse_size(own, "disk") <= limit):
        return config.budget
    return config.budget.model_copy(update={"disk": config.activation_cache_limit})


def _with(config: RunConfig, batch: int, accumulation: int, checkpointing: bool, activation_cache: bool) -> RunConfig:
    """The config with what a planner chose besides the plan. A store that it chose may still prove impossible."""
    store = config.activation_cache if activation_cache or config.frozen_bits else "off"
    return config.model_copy(
        update={
            "batch_size": batch,
            "gradient_accumulation": accumulation,
            "checkpointing": checkpointing,
            "activation_cache": store,
        }
    )
