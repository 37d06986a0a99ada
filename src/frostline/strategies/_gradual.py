"""Gradual unfreezing: the highest blocks train first, lower ones join them (methods.md 6 and 10)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field, PositiveInt

from frostline.core.errors import ConfigError
from frostline.core.settings import Options
from frostline.plan import Frozen, Full, Plan, Timetable
from frostline.strategies._plans import plan_of
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation


class GradualOptions(Options):
    """The options of gradual unfreezing.

    Attributes:
        groups: into how many groups of blocks the model is divided, of equal size where that is possible.
        every: optimizer steps from one group to the next; None: the groups begin at equal parts of the training.
        frozen: how many of the lowest groups never train.
        decay: the learning rate of a block is that of the block above, divided by this number; 1: all have the same.
    """

    groups: PositiveInt = 4
    every: PositiveInt | None = None
    frozen: int = Field(0, ge=0)
    decay: float = Field(2.6, ge=1)


def gradual(situation: Situation, options: GradualOptions) -> Selection:
    """Gradual unfreezing with discriminative rates (ULMFiT, Howard and Ruder 2018).

    The last group of blocks trains first; one more joins it every few steps, from the top. Final norm and head train
    from the start, the embeddings are frozen. Raises `ConfigError` for more groups than blocks, where no group is left
    to train, and where the number of steps is needed and not known.
    """
    blocks, groups = situation.blocks, options.groups
    if groups > blocks:
        raise ConfigError(f"strategy 'gradual': groups={groups}, but the model has {blocks} blocks: use fewer")
    if options.frozen >= groups:
        raise ConfigError(f"strategy 'gradual': frozen={options.frozen} leaves none of {groups} groups: use less")
    turns = groups - options.frozen
    every = options.every or max(1, math.floor(situation.known_steps("gradual") / turns))

    def plans() -> Iterator[tuple[int, Plan]]:
        for turn in range(turns):
            lowest = round(blocks * (groups - 1 - turn) / groups)
            modes = (
                Full(lr_scale=options.decay ** (index + 1 - blocks)) if index >= lowest else Frozen()
                for index in range(blocks)
            )
            yield turn * every, plan_of(situation, modes, "gradual")

    return Selection(Timetable(plans, situation.steps))
