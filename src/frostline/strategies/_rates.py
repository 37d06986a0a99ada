"""Strategies that give each block its own learning rate (methods.md 6)."""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from frostline.core.errors import PlanError
from frostline.core.settings import Options
from frostline.plan import BlockMode, Frozen, Full
from frostline.strategies._plans import plan_of
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation

RELATIVE_NORM = "relative_gradient_norm"


class SurgicalOptions(Options):
    """The options of `surgical`.

    Attributes:
        rows: on how many rows of the task the gradient is measured, before training.
    """

    rows: PositiveInt = 256


class DiscriminativeOptions(Options):
    """The options of `discriminative`.

    Attributes:
        decay: the learning rate of a block is that of the block above, divided by this number.
    """

    decay: float = Field(2.6, ge=1)


def surgical(situation: Situation, options: SurgicalOptions) -> Selection:
    """Auto-RGN (Lee et al. 2023): each block's learning rate is proportional to ||gradient|| / ||weights||.

    The block with the largest ratio trains at the run's learning rate. The ratio is measured once, before training. A
    block without a gradient is frozen. Raises `PlanError` when no block has one.
    """
    probe = situation.probe((RELATIVE_NORM,), options.rows)
    norms = [one.value or 0.0 for one in probe.signals[RELATIVE_NORM]]
    # A block whose weights are all 0 has an infinite ratio. It trains at the full rate, and the others ignore it.
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0) or math.inf
    scales = [1.0 if math.isinf(norm) else norm / largest for norm in norms]
    if not any(scales):
        raise PlanError(
            "strategy 'surgical': the loss has no gradient in any block: use another strategy, such as bot50"
        )
    return fixed(plan_of(situation, map(_at, scales), "surgical"))


def discriminative(situation: Situation, options: DiscriminativeOptions) -> Selection:
    """Discriminative learning rates (Howard and Ruder 2018): each block has 1/2.6 of the rate of the block above."""
    depths = reversed(range(situation.blocks))
    return fixed(plan_of(situation, (Full(lr_scale=options.decay**-depth) for depth in depths), "discriminative"))


def _at(scale: float) -> BlockMode:
    return Full(lr_scale=scale) if scale > 0 else Frozen()
