"""The schedule: the plan as it changes over training. A fixed plan is the simplest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class KeepingDropout:
    """The plans of another schedule, each with `frozen_dropout`.

    Args:
        schedule: the other one. State and observations are its own.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    @property
    def first(self) -> Plan:
        return _keeping(self._schedule.first)

    @property
    def observes(self) -> frozenset[str]:
        return self._schedule.observes

    @property
    def settled(self) -> bool:
        return self._schedule.settled

    def next(self, step: int, observations: Observations) -> Plan | None:
        plan = self._schedule.next(step, observations)
        return None if plan is None else _keeping(plan)

    def state_dict(self) -> dict[str, Any]:
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._schedule.load_state_dict(state)


def _keeping(plan: Plan) -> Plan:
    return plan.model_copy(update={"frozen_dropout": True})
