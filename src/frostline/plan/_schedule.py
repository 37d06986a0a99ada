"""The schedule: the plan as it changes over training. A fixed plan is the simplest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from frostline.plan._plan import Plan

Observations = Mapping[str, Sequence[float]]
"""Signal name -> one number per block, measured by the engine since the current plan began, when it is read."""


@runtime_checkable
class Schedule(Protocol):
    """Says, before each optimizer step, whether the plan changes, and to what.

    `observes` names the signals (per block) that `next` wants to be given from now on; the engine measures them.
    `settled` says that the plan stays as it is to the end. The state is plain JSON data, so that a killed run
    resumes with the schedule where it was.
    """

    @property
    def observes(self) -> frozenset[str]: ...

    @property
    def settled(self) -> bool: ...

    def next(self, step: int, observations: Observations) -> Plan | None:
        """The plan from optimizer step `step` (counted from 0) on, or None to keep the current one.

        Step 0 always gives a plan.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FixedSchedule:
    """One plan from the first step to the last."""

    observes: frozenset[str] = frozenset()
    settled = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def next(self, step: int, observations: Observations) -> Plan | None:
        return self.plan if step == 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"a fixed schedule has no state, given {sorted(state)}")
