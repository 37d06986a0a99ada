"""Strategies that train every block, each at a learning rate of its own (methods.md 6)."""

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
    """`rows`: of the task, on which the gradient is measured before training."""

    rows: PositiveInt = 256


class DiscriminativeOptions(Options):
    """`decay`: by what the learning rate is divided from a block to the one below it."""

    decay: float = Field(2.6, ge=1)


def surgical(situation: Situation, options: SurgicalOptions) -> Selection:
    """Auto-RGN (Lee et al. 2023): lr_i is proportional to ||g_i|| / ||w_i||, and 1 for the largest.

    Measured once, before training. A block without a gradient is frozen. Raises `UserError` when none has one.
    """
    probe = situation.probe((RELATIVE_NORM,), options.rows)
    norms = [one.value or 0.0 for one in probe.signals[RELATIVE_NORM]]
    # A block of zeros has an infinite ratio: it trains at the full rate, and the others as if it were not there.
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0) or math.inf
    scales = [1.0 if math.isinf(norm) else norm / largest for norm in norms]
    if not any(scales):
        raise PlanError("strategy 'surgical': the loss has no gradient in any block, so there is none to train")
    return fixed(plan_of(situation, map(_at, scales), "surgical"))


def discriminative(situation: Situation, options: DiscriminativeOptions) -> Selection:
    """Discriminative learning rates (Howard and Ruder 2018): each block's is 1/2.6 of that of the block above."""
    depths = reversed(range(situation.blocks))
    return fixed(plan_of(situation, (Full(lr_scale=options.decay**-depth) for depth in depths), "discriminative"))


def _at(scale: float) -> BlockMode:
    return Full(lr_scale=scale) if scale > 0 else Frozen()
