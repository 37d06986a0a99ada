"""What a strategy selects."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.plan import FixedSchedule, Plan, Schedule, Split
from frostline.strategies._choice import Choice


@dataclass(frozen=True)
class Selection:
    """What a strategy selects: a schedule, and what goes with it.

    Attributes:
        schedule: the plan, as it changes over training.
        choice: what a planner chose within a budget: the settings of the run that go with the plan, and what it was
            chosen over. None where nothing was planned.
        split: how the training is split over processes. None trains in one.
    """

    schedule: Schedule
    choice: Choice | None = None
    split: Split | None = None


def fixed(plan: Plan, *, choice: Choice | None = None, split: Split | None = None) -> Selection:
    """The selection of one plan, from the first step to the last.

    Args:
        plan: what trains.
        choice: as in `Selection`.
        split: as in `Selection`.
    """
    return Selection(FixedSchedule(plan), choice, split)
