"""The schedule: the plan as it changes over training. A fixed plan is the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from frostline.plan._plan import Plan

Observations = Mapping[str, Sequence[float]]
"""Signal name -> one number per block. The engine measures a signal when the schedule reads it, over the time since the
current plan began."""


Rate = Callable[[int, int | None], float]
"""(Optimizer step, block or None) -> the share of the learning rate."""


@runtime_checkable
class Schedule(Protocol):
    """The plan that training starts with, and the plans that follow it.

    The state is plain JSON data, so that a killed run can resume with the schedule where it was.

    A schedule may have four attributes more, with which it declares what it knows of the plans to come:

    - `lowest`: the lowest boundary of all plans from now on (`lowest_boundary`; 0 without it). States of the frozen
      bottom below it are worth keeping.
    - `phases(steps)`: the plans of the first `steps` steps, as far as they are known or expected, as (first step, plan)
      (`phases`; the first plan alone without it). Costs are predicted for them.
    - `whole`: a plan with everything that any of its plans adds to a block (`whole_plan`; the first plan without it).
      Adapters are made once, before training.
    - `rate(step, block)`: the share of the learning rate that a block has at a step, in place of the trainer's
      learning-rate schedule; `block` is None for all other parameters.

    Attributes:
        observes: the signals that `next` needs from now on. The engine measures them for every block.
        settled: whether the plan stays as it is to the end. It may be False to the end.
    """

    @property
    def first(self) -> Plan:
        """The plan that training starts with. It does not depend on the state."""
        ...

    @property
    def observes(self) -> frozenset[str]: ...

    @property
    def settled(self) -> bool: ...

    def next(self, step: int, observations: Observations) -> Plan | None:
        """The plan from optimizer step `step` on, or None to keep the current one.

        Called before every step but the first (step 0), until the schedule is settled.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FixedSchedule:
    """One plan from the first step to the last."""

    observes: frozenset[str] = frozenset()
    settled = True

    def __init__(self, plan: Plan) -> None:
        self.first = plan

    def next(self, step: int, observations: Observations) -> Plan | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"a fixed schedule has no state (given: {sorted(state)})")


class ChangedPlans:
    """The plans of another schedule, each changed in one way.

    Args:
        schedule: the other one. State and observations are its own.
        change: gives the plan to train instead of one of its plans.
        whole: what all plans add, where the changes add something (`Schedule`).
    """

    def __init__(self, schedule: Schedule, change: Callable[[Plan], Plan], whole: Plan | None = None) -> None:
        self._schedule, self._change, self._whole = schedule, change, whole

    @property
    def first(self) -> Plan:
        return self._change(self._schedule.first)

    @property
    def observes(self) -> frozenset[str]:
        return self._schedule.observes

    @property
    def settled(self) -> bool:
        return self._schedule.settled

    def next(self, step: int, observations: Observations) -> Plan | None:
        plan = self._schedule.next(step, observations)
        return None if plan is None else self._change(plan)

    @property
    def whole(self) -> Plan:
        return self._whole or self._change(whole_plan(self._schedule))

    @property
    def lowest(self) -> int:
        return int(getattr(self._schedule, "lowest", 0))

    @property
    def rate(self) -> Rate | None:
        return rate_of(self._schedule)

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        return [(step, self._change(plan)) for step, plan in phases(self._schedule, steps)]

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._schedule.load_state_dict(state)


def keep_dropout(schedule: Schedule) -> Schedule:
    """The plans of `schedule`, each with `frozen_dropout`."""
    return ChangedPlans(schedule, lambda plan: plan.model_copy(update={"frozen_dropout": True}))


def lowest_boundary(schedule: Schedule, plan: Plan) -> int:
    """The lowest boundary of all plans from now on.

    Args:
        schedule: what may change the plan.
        plan: the current one.
    """
    return plan.boundary if schedule.settled else min(plan.boundary, getattr(schedule, "lowest", 0))


def whole_plan(schedule: Schedule) -> Plan:
    """A plan with everything that any plan of a schedule adds to a block."""
    whole: Plan = getattr(schedule, "whole", schedule.first)
    return whole


def rate_of(schedule: Schedule) -> Rate | None:
    """The learning rates that a schedule sets itself (`Schedule`); None where it does not."""
    rate: Rate | None = getattr(schedule, "rate", None)
    return rate


def phases(schedule: Schedule, steps: int) -> list[tuple[int, Plan]]:
    """The plans of the first `steps` steps, each with its first step, as far as they are known or expected."""
    known: Callable[[int], list[tuple[int, Plan]]] | None = getattr(schedule, "phases", None)
    return [(0, schedule.first)] if known is None else known(steps)
