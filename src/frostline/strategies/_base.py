"""What a strategy is: a function from a situation to a schedule, and what its name may carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from frostline.anatomy import Anatomy, find_anatomy
from frostline.plan import FixedSchedule, Frozen, Full, Plan, Schedule


@dataclass(frozen=True)
class Situation:
    """What a strategy may look at when it chooses."""

    anatomy: Anatomy
    seed: int = 0

    @classmethod
    def of(cls, model: nn.Module, seed: int = 0) -> Situation:
        """The situation of a model that is in memory (or on the meta device)."""
        return cls(find_anatomy(model), seed)

    @property
    def blocks(self) -> int:
        return len(self.anatomy.blocks)


Choose = Callable[[Situation, int], Schedule]


@dataclass(frozen=True)
class Strategy:
    """One entry of the table of strategies.

    `choose(situation, percent)` gives the schedule. `percents` is which numbers may follow the name: none
    (the strategy is then called with 0), or any of a range such as ``range(1, 100)``, or some.
    """

    summary: str
    choose: Choose
    percents: range | tuple[int, ...] = ()


def fixed(plan: Plan) -> Schedule:
    """The schedule that keeps one plan."""
    return FixedSchedule(plan)


def freeze_blocks(situation: Situation, frozen: set[int], strategy: str) -> Plan:
    """Blocks in `frozen` and the embeddings frozen, the other blocks, the final norm and the head full.

    On a model with tied embeddings the head is the embedding's tensor, and stays frozen with it.
    """
    blocks = tuple(Frozen() if index in frozen else Full() for index in range(situation.blocks))
    head = Frozen() if situation.anatomy.tied else Full()
    return Plan(strategy=strategy, blocks=blocks, head=head)


def task_head(situation: Situation) -> Frozen | Full:
    """Full for a head that the task brought along (a classifier), frozen for a pretrained LM head."""
    return Frozen() if situation.anatomy.has_lm_head else Full()
