"""A change of the plan in training, as it is recorded: what differs from the plan before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frostline.plan import Plan, difference, with_difference


@dataclass(frozen=True)
class PlanChange:
    """A change of the plan in training.

    Attributes:
        step: the first optimizer step under the new plan, counted from 0.
        plan: the new plan.
        seconds: time that the change took.
        differs: what differs from the plan before (`plan.difference`).
    """

    step: int
    plan: Plan
    seconds: float
    differs: Mapping[str, Any]

    @classmethod
    def between(cls, before: Plan, after: Plan, step: int, seconds: float) -> PlanChange:
        """The change from one plan to another.

        Args:
            before: the plan until `step`.
            after: the plan from `step` on.
            step: an optimizer step.
            seconds: time that the change took.
        """
        return cls(step, after, seconds, difference(before, after))

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"step": self.step, "seconds": self.seconds, "differs": dict(self.differs)}


def read_changes(first: Plan, entries: Iterable[Mapping[str, Any]]) -> list[PlanChange]:
    """The inverse of `PlanChange.document`, for all changes since `first`, in their order."""
    found, plan = [], first
    for entry in entries:
        plan = with_difference(plan, entry["differs"])
        found.append(PlanChange(entry["step"], plan, entry["seconds"], entry["differs"]))
    return found
