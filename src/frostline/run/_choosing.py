"""A run's strategy chooses: what it may look at, and what comes with its choice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.anatomy import Anatomy
from frostline.core.seeding import derive_seed
from frostline.cost import Workload
from frostline.engine import quiet_libraries, tensor_hashes
from frostline.plan import Schedule
from frostline.run._calibrate import calibrate
from frostline.run._config import RunConfig
from frostline.run._device import device
from frostline.run._work import Data
from frostline.signals import Probe, cached, choose_signals, measure, probe_identity, token_text
from frostline.strategies import Choice, Measure, Situation, choose_schedule
from frostline.tasks import Collator, TaskKind


@dataclass(frozen=True)
class Chosen:
    """What a strategy chose for a run.

    `config` is the run's, with the batch, accumulation, checkpointing and cold store that a planner chose; `probe` is
    what the strategy measured, `seconds` the time that measuring took (when it was measured), and choosing.
    """

    schedule: Schedule
    config: RunConfig
    probe: Probe | None
    seconds: float

    @property
    def choice(self) -> Choice | None:
        """The planner's choice, where there was one."""
        found: Choice | None = getattr(self.schedule, "choice", None)
        return found


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

    work = workload() if config.budget.limits else Workload()
    store = _asked_store(config) if config.budget.limits else None
    if store is not None:
        work = work.model_copy(update={"cold_store": store})
    situation = Situation(
        anatomy,
        config.seed,
        measure=observed,
        budget=config.budget,
        workload=work,
        decided=frozenset() if store is None else frozenset({"cold_store"}),
        speed=calibrate(model_config, model_class, work) if config.calibrate and config.budget.limits else None,
    )
    schedule = choose_schedule(config.strategy, situation, config.strategy_options)
    seconds = time.perf_counter() - begun - spent + sum(probe.seconds or 0.0 for probe in probes)
    chosen = Chosen(schedule, config, probes[-1] if probes else None, seconds)
    return chosen if chosen.choice is None else Chosen(schedule, _with(config, chosen.choice), chosen.probe, seconds)


def measure_here(model: Any, anatomy: Anatomy, config: RunConfig, data: Data) -> Measure:
    """Measures `model`, which is in memory, on rows of the run's task that are drawn by its seed; kept by content."""

    def measure_blocks(signals: Sequence[str] | None, rows: int) -> Probe:
        sample = draw(data.rows.rows, rows, config.seed)
        reading: Any = "all" if data.task.kind is TaskKind.LANGUAGE else "first"
        chosen = choose_signals(model, anatomy, sample, signals)
        model.to(device())

        def probe() -> Probe:
            begun = time.perf_counter()
            with quiet_libraries():
                found = measure(model, sample, Collator(data.tokenizer), signals=chosen, tokens=reading)
            classes = data.task.kind is TaskKind.CLASSIFICATION
            read = token_text(anatomy, classes=classes, tokens=reading)
            return Probe(config.model, data.task.name, len(sample), read, found, time.perf_counter() - begun)

        identity = probe_identity(
            model, tensor_hashes(model), sample, signals=chosen, tokens=reading, device=device().type
        )
        return cached(identity, (config.model, data.task.name), probe)

    return measure_blocks


def draw(rows: Sequence[Any], most: int, seed: int) -> list[Any]:
    """At most `most` of the rows, in their order: those that a task of so many training rows would have."""
    if most >= len(rows):
        return list(rows)
    chosen = random.Random(derive_seed(seed, "train rows")).sample(range(len(rows)), most)
    return [rows[index] for index in sorted(chosen)]


def _asked_store(config: RunConfig) -> bool | None:
    """Whether the run trains from a cold store, where its config decides."""
    if config.streaming or config.cold_store == "on":
        return True
    return False if config.cold_store == "off" or config.frozen_bits else None


def _with(config: RunConfig, choice: Choice) -> RunConfig:
    """The config with what a planner chose besides the plan."""
    work = choice.workload
    return config.model_copy(
        update={
            "batch_size": work.batch,
            "gradient_accumulation": work.accumulation,
            "checkpointing": work.checkpointing,
            **({} if config.frozen_bits else {"cold_store": "on" if work.cold_store else "off"}),
        }
    )
