"""FreezeOut: each block stops training at a time of its own, the lowest first (methods.md 6 and 10)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field

from frostline.core.settings import Options
from frostline.plan import Plan, Timetable
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation


class FreezeOutOptions(Options):
    """The options of FreezeOut.

    Attributes:
        start: the share of the training after which the lowest block freezes (t_0), before it is cubed.
        cubed: whether the shares of the training are cubed, so that low blocks freeze early.
        scaled: whether block i begins with the learning rate lr / t_i, so that all blocks move equally far; else all
            begin with lr.
    """

    start: float = Field(0.8, gt=0, le=1)
    cubed: bool = True
    scaled: bool = True


def freezeout(situation: Situation, options: FreezeOutOptions) -> Selection:
    """FreezeOut (Brock et al. 2017): block i of L trains until the share t_i of all steps, at a cosine of its own.

    t_i = (t_0 + (1 - t_0) i / L)^3; the learning rate at step j of T is lr / (2 t_i) (1 + cos(pi j / (t_i T))). Final
    norm and head train to the end (i = L). Where the head is tied, and so frozen, the last block takes its place: i is
    divided by L - 1. The last block stays in the plan to the end, at the rate 0. The embeddings are frozen.

    Raises `ConfigError` where the number of steps is not known.
    """
    steps, blocks = situation.known_steps("freezeout"), situation.blocks
    last = max(1, blocks - situation.anatomy.tied)
    ends = [(options.start + (1 - options.start) * i / last) ** (3 if options.cubed else 1) for i in range(blocks)]

    def rate(step: int, block: int | None) -> float:
        end = 1.0 if block is None else ends[block]
        if step >= end * steps:
            return 0.0
        return (1 + math.cos(math.pi * step / (end * steps))) / (2 * end if options.scaled else 2)

    def plans() -> Iterator[tuple[int, Plan]]:
        frozen, at = 0, [max(1, math.ceil(end * steps)) for end in ends[:-1]]
        yield 0, freeze_blocks(situation, set(), "freezeout")
        while frozen < len(at):
            step = at[frozen]
            while frozen < len(at) and at[frozen] == step:
                frozen += 1
            yield step, freeze_blocks(situation, set(range(frozen)), "freezeout")

    return Selection(Timetable(plans, steps, rate))
