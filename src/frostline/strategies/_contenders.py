"""What trials choose from: the rule's choice for a budget, and plans beside it that fit the budget too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from frostline.anatomy import Anatomy
from frostline.cost import caching_flops, flops_ratio, full_plan, step_flops
from frostline.strategies._auto import AutoOptions, worths
from frostline.strategies._choice import AboveMode, Choice, Option
from frostline.strategies._planner import Planner
from frostline.strategies._situation import Situation
from frostline.strategies._worth import learning_rate


@dataclass(frozen=True)
class Contenders:
    """What trials choose from.

    Attributes:
        first: what the rule chooses.
        others: other plans, the most promising first: boundaries above and below, LoRA on everything, the other head.
        whole: the operations of a step of full fine-tuning as frostline trains it, as a share of those of plain full
            fine-tuning, which computes head and last block at every position.
        anatomy: of the model.
        learning_rate: the rule's.
    """

    first: Choice
    others: tuple[Option, ...]
    whole: float
    anatomy: Anatomy
    learning_rate: float

    def caching_share(self, option: Option) -> float:
        """The operations of the caching pass over all rows, as a multiple of those of a step of full fine-tuning."""
        work = option.workload
        step = step_flops(full_plan(self.anatomy), self.anatomy, work.plain).total * work.gradient_accumulation_steps
        return caching_flops(option.plan, self.anatomy, work) / (step * self.whole)

    def step_share(self, option: Option) -> float:
        """The operations of a step, as a share of full fine-tuning's as frostline trains it."""
        return option.prediction.flops_ratio / self.whole


def yardstick(situation: Situation, options: AutoOptions) -> tuple[Option, float]:
    """The plan whose steps tell how long full fine-tuning's take, and the operations of its step as a share of theirs.

    It is full fine-tuning itself, or another plan where that does not fit the memory of the budget.

    Args:
        situation: the model, the budget and the workload.
        options: those of `auto`.

    Raises `PlanError` when nothing fits the budget.
    """
    whole = flops_ratio(full_plan(situation.anatomy), situation.anatomy, situation.workload)
    planner = Planner.of(situation.within(whole), worths(situation, options), options, spend=True)
    option = planner.at("full", 0, False) or planner.choice()
    return option, option.prediction.flops_ratio / whole


def contenders(situation: Situation, options: AutoOptions, share: float) -> Contenders:
    """What trials choose from, for a time that is a share of full fine-tuning's as frostline trains it.

    Args:
        situation: the model, the budget and the workload.
        options: those of `auto`.
        share: the time.

    Raises `PlanError` when nothing fits the budget.
    """
    whole = flops_ratio(full_plan(situation.anatomy), situation.anatomy, situation.workload)
    limited = situation.within(share * whole)
    planner = Planner.of(limited, worths(limited, options), options, spend=True)
    first = planner.choice()
    others = [one for way in _beside(first, situation) if (one := planner.at(*way)) is not None]
    return Contenders(first, tuple(others), whole, situation.anatomy, learning_rate(situation.anatomy))


def _beside(first: Option, situation: Situation) -> Iterator[tuple[AboveMode, int, bool]]:
    blocks, tied = situation.blocks, situation.anatomy.tied
    far, boundary, untie = max(1, round(blocks / 8)), first.plan.boundary, first.plan.untie
    ways: list[tuple[AboveMode, int, bool]] = []
    for distance in (far, -far, 2 * far, -2 * far):
        at = boundary + distance
        ways.append(("full", at, tied and at > 0))
    ways[2:2] = [("lora", 0, False), *([(first.mode, boundary, not untie)] if tied else [])]
    known = {(first.mode, boundary, untie)}
    for mode, at, unties in ways:
        if 0 <= at < blocks and (mode, at, unties) not in known:
            known.add((mode, at, unties))
            yield mode, at, unties
