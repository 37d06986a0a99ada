"""Strategies that choose blocks by position (methods.md 1), and the baselines that they are compared with."""

from __future__ import annotations

import math
import random

from pydantic import Field

from frostline.core.errors import PlanError
from frostline.core.seeding import derive_seed
from frostline.plan import Frozen, Full, Partial, Plan, Timetable
from frostline.strategies._plans import freeze_blocks, task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import NoOptions, Percent

INTERVALS = {25: 4, 33: 3, 50: 2}


def frozen_count(percent: int, blocks: int) -> int:
    """How many of L `blocks` P percent are: floor(P L / 100 + 0.5), at least 1 and at most L - 1.

    Raises `PlanError` for a model of one block.
    """
    if blocks < 2:
        raise PlanError("the model has one block, so some of its blocks cannot be frozen: use all, head or lora")
    return min(max(math.floor(percent * blocks / 100 + 0.5), 1), blocks - 1)


def all_layers(situation: Situation, options: NoOptions) -> Selection:
    """Full fine-tuning: everything trains, the embeddings too."""
    return fixed(Plan(strategy="all", embeddings=Full(), blocks=(Full(),) * situation.blocks))


def head_only(situation: Situation, options: NoOptions) -> Selection:
    """Only the head trains (a linear probe). A tied head gets its own copy of the embedding."""
    return fixed(
        Plan(
            strategy="head",
            blocks=(Frozen(),) * situation.blocks,
            final_norm=Frozen(),
            untie=situation.anatomy.tied,
        )
    )


class BottomOptions(Percent):
    """The options of BOT.

    Attributes:
        first: the share of the training in which everything trains, before the blocks freeze.
    """

    first: float = Field(0.0, ge=0, lt=1)


def bottom(situation: Situation, options: BottomOptions) -> Selection:
    """BOT: the lowest P percent of the blocks are frozen; with `first`, after a share of the training.

    Raises `ConfigError` where the number of steps is needed, and is not known.
    """
    count, name = frozen_count(options.percent, situation.blocks), f"bot{options.percent}"
    plan = freeze_blocks(situation, set(range(count)), name)
    if not options.first:
        return fixed(plan)
    steps = situation.known_steps(name)
    everything = all_layers(situation, NoOptions()).schedule.first.model_copy(update={"strategy": name})
    change = max(1, round(options.first * steps))
    return Selection(Timetable(lambda: iter([(0, everything), (change, plan)]), steps))


def top(situation: Situation, options: Percent) -> Selection:
    """TOP: the highest P percent of the blocks are frozen; final norm and head train."""
    count = frozen_count(options.percent, situation.blocks)
    frozen = set(range(situation.blocks - count, situation.blocks))
    return fixed(freeze_blocks(situation, frozen, f"top{options.percent}"))


def interval(situation: Situation, options: Percent) -> Selection:
    """INT: every n-th block is frozen (25, 33, 50 percent: n = 4, 3, 2)."""
    n = INTERVALS[options.percent]
    frozen = {index for index in range(situation.blocks) if (index + 1) % n == 0}
    if not frozen:
        raise PlanError(
            f"strategy 'int{options.percent}' freezes every n-th block with n = {n}, but the model has "
            f"{situation.blocks}: use all, head or lora"
        )
    return fixed(freeze_blocks(situation, frozen, f"int{options.percent}"))


def at_random(situation: Situation, options: Percent) -> Selection:
    """P percent of the blocks, drawn with the run's seed, are frozen. The baseline for every choice of blocks."""
    count = frozen_count(options.percent, situation.blocks)
    draw = random.Random(derive_seed(situation.seed, "strategy", "random"))
    return fixed(freeze_blocks(situation, set(draw.sample(range(situation.blocks), count)), f"random{options.percent}"))


def bitfit(situation: Situation, options: NoOptions) -> Selection:
    """BitFit (Ben Zaken et al. 2022): the biases of every block train, and a task head."""
    blocks = (Partial(train="biases"),) * situation.blocks
    return fixed(Plan(strategy="bitfit", blocks=blocks, final_norm=Frozen(), head=task_head(situation)))
