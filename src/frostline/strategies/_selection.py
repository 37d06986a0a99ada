"""The result of a strategy."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.plan import FixedSchedule, Plan, Schedule, Split
from frostline.strategies._choice import Choice


@dataclass(frozen=True)
class Selection:
    """What a strategy selects: a schedule, and what belongs to it.

    Attributes:
        schedule: the plan, as it changes over training.
        choice: what the planner chose within a budget: settings of the run that belong to the plan, and the plans
            that it was compared with. None without a planner.
        split: how training is divided between processes. None trains in one process.
    """

    schedule: Schedule
    choice: Choice | None = None
    split: Split | None = None


def fixed(plan: Plan, *, choice: Choice | None = None, split: Split | None = None) -> Selection:
    """The selection of one plan for the whole training.

    Args:
        plan: what trains.
        choice: as in `Selection`.
        split: as in `Selection`.
    """
    return Selection(FixedSchedule(plan), choice, split)
