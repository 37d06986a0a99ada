"""The schedule: the plan as it changes over training. A fixed plan is the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from frostline.plan._plan import Plan

Observations = Mapping[str, Sequence[float]]
"""Signal name -> one number per block. The engine measures a signal when the schedule reads it, over the time since the
current plan began."""


@runtime_checkable
class Schedule(Protocol):
    """The plan that training starts with, and the plans that follow it.

    The state is plain JSON data, so that a killed run can resume with the schedule where it was.

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
    """

    def __init__(self, schedule: Schedule, change: Callable[[Plan], Plan]) -> None:
        self._schedule, self._change = schedule, change

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

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._schedule.load_state_dict(state)


def keep_dropout(schedule: Schedule) -> Schedule:
    """The plans of `schedule`, each with `frozen_dropout`."""
    return ChangedPlans(schedule, lambda plan: plan.model_copy(update={"frozen_dropout": True}))
