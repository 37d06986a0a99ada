"""The schedule: the plan as it changes over training. A fixed plan is the simplest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from frostline.plan._plan import Plan

Observations = Mapping[str, Sequence[float]]
"""Signal name -> one number per block, measured by the engine since the current plan began, when it is read."""


@runtime_checkable
class Schedule(Protocol):
    """The plan that training starts with, and the plans that follow it.

    `observes` names the signals (per block) that `next` is given from now on; the engine measures them. `settled` says
    that the plan stays as it is to the end; it may stay False for ever. The state is plain JSON data, so that a killed
    run resumes with the schedule where it was.
    """

    @property
    def first(self) -> Plan:
        """The plan that training starts with: the same at any time, whatever the state."""
        ...

    @property
    def observes(self) -> frozenset[str]: ...

    @property
    def settled(self) -> bool: ...

    def next(self, step: int, observations: Observations) -> Plan | None:
        """The plan from optimizer step `step` on, or None to keep the current one.

        Asked before every step from 1 on (step 0 is the first), until the schedule is settled.
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
            raise ValueError(f"a fixed schedule has no state, given {sorted(state)}")
