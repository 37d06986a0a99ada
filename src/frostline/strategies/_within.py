"""What a strategy chose, within a budget: it says what trains, and the planner chooses the settings of the run.

The settings are the batch of a device (with as much accumulation that the rows of an optimizer step stay the same),
activation checkpointing and the activation cache. The cost is that of all plans of a schedule (`predict_phases`), and
the passes over the rows are those of the workload. Of all settings that fit, those with the least time are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from frostline.core.errors import ConfigError, PlanError
from frostline.cost import Prediction, Workload, evaluation_memory, predict_phases
from frostline.plan import Plan, phases
from frostline.strategies._candidates import batches, with_settings
from frostline.strategies._choice import GIVEN, Choice, Option
from frostline.strategies._limits import Limit, Yardstick, limits
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation


def within_budget(selection: Selection, situation: Situation, name: str) -> Selection:
    """The selection, with settings of the run that keep it within `situation.budget`; as it is without a budget.

    Args:
        selection: what the strategy chose.
        situation: the model, the budget and the workload.
        name: of the strategy, for errors.

    Raises `ConfigError` for a strategy that trains in several processes, and `PlanError` when no settings fit.
    """
    if not situation.budget.limits or selection.choice is not None:
        return selection
    if selection.split is not None:
        raise ConfigError(
            f"budget: strategy '{name}' trains in several processes, whose cost is not predicted: leave the budget out"
        )
    whole = Yardstick.of(situation)
    found, within = _Settings(selection, situation, whole), limits(situation, whole)
    options = [found.option(work) for work in found.works()]
    fitting = [one for one in options if all(found.use(limit, one) <= limit.amount * (1 + 1e-9) for limit in within)]
    if not fitting:
        raise PlanError(f"no settings of '{name}' fit {found.refusal(options, within)}")
    best, *others = sorted(fitting, key=found.rank)
    return replace(selection, choice=Choice(**vars(best), runner_up=others[0] if others else None))


class _Settings:
    """The settings with which a schedule may train, and what each needs."""

    def __init__(self, selection: Selection, situation: Situation, whole: Yardstick) -> None:
        self._situation, self._whole, self._asked = situation, whole, situation.workload
        self._steps = situation.steps or self._asked.optimizer_steps
        self._plans: list[tuple[int, Plan]] = phases(selection.schedule, self._steps)
        self._first = selection.schedule.first
        self._evaluation = self._evaluating()

    def works(self) -> Iterator[Workload]:
        """All workloads; of each, as many rows in an optimizer step as in the one that was asked for."""
        free = "per_device_train_batch_size" not in self._situation.decided
        settings = self._open("activation_checkpointing"), self._cached()
        for batch, recomputes, stored in product(batches(self._situation, free), *settings):
            yield with_settings(self._asked, batch, recomputes, stored)

    def option(self, work: Workload) -> Option:
        found = predict_phases(self._plans, self._steps, self._situation.anatomy, work, self._situation.speed)
        return Option(
            mode=GIVEN,
            plan=self._first,
            workload=work,
            expected_gain=None,
            prediction=found,
            memory_share=found.peak_memory_bytes / self._whole.memory,
            time_share=self._time(found) / self._whole.time,
        )

    def use(self, limit: Limit, option: Option) -> float:
        found = option.prediction
        if limit.resource == "memory":
            return max(found.peak_memory_bytes, self._evaluation)
        return found.disk_bytes if limit.resource == "disk" else self._time(found)

    def rank(self, option: Option) -> tuple[float, ...]:
        """Sorts the better first: by time, then by how little is changed of what was asked."""
        work, asked = option.workload, self._asked
        ratio = work.per_device_train_batch_size / asked.per_device_train_batch_size
        settings = work.activation_checkpointing, work.activation_cache
        return (self._time(option.prediction), max(ratio, 1 / ratio), *settings)

    def refusal(self, options: Sequence[Option], within: Sequence[Limit]) -> str:
        """The limits that the settings with the least excess do not keep, and what would do."""

        def excess(option: Option) -> float:
            return max(self.use(limit, option) / max(limit.amount, 1e-9) for limit in within)

        least = min(options, key=excess)
        short = [(limit, self.use(limit, least)) for limit in within if self.use(limit, least) > limit.amount]
        needs = " and ".join(f"{limit.resource}={limit.text(use, enough=True)}" for limit, use in short)
        more = ", ".join(f"{limit.text(use - limit.amount)} more" for limit, use in short)
        return f"{', '.join(str(limit) for limit, _ in short)}: use {needs} ({more}), for {least.what}"

    def _time(self, found: Prediction) -> float:
        return found.run_flops if found.run_seconds is None else found.run_seconds

    def _evaluating(self) -> int:
        """Peak bytes of the evaluation that has to fit too."""
        work, asked = self._situation.evaluation, self._asked
        if work is None:
            return 0
        plans = {plan.model_dump_json(): plan for _, plan in self._plans}.values()
        return max(evaluation_memory(plan, self._situation.anatomy, asked, work) for plan in plans)

    def _open(self, setting: str) -> tuple[bool, ...]:
        asked = bool(getattr(self._asked, setting))
        return (asked,) if setting in self._situation.decided else (False, True)

    def _cached(self) -> tuple[bool, ...]:
        """No cache with quantized blocks, for rows of several texts, nor where all blocks train."""
        possible = (
            self._asked.texts == 1 and self._asked.frozen_bits is None and any(plan.boundary for _, plan in self._plans)
        )
        return self._open("activation_cache") if possible else (False,)
