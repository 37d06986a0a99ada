"""AutoFreeze: the bottom freezes up to the first block whose gradients still change (methods.md 6 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations
from frostline.strategies._rising import RisingBottom
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation

GRADIENTS = "gradient_sum"


class AutoFreezeOptions(Options):
    """The options of AutoFreeze.

    Attributes:
        decisions: how often in the whole training it is decided what freezes, at equal distances.
        percentile: a block goes on training, with all above it, when its gradients change more than those of this
            share (in percent) of the blocks that train.
    """

    decisions: PositiveInt = 10
    percentile: float = Field(50.0, gt=0, lt=100)


def autofreeze(situation: Situation, options: AutoFreezeOptions) -> Selection:
    """AutoFreeze (Liu et al. 2021): blocks whose gradients have settled freeze, from the bottom, for good.

    Raises `ConfigError` where the number of steps is not known.
    """
    return Selection(_AutoFreeze(situation, options, situation.known_steps("autofreeze")))


class _AutoFreeze(RisingBottom):
    """In each interval the gradients of a block are summed up; n is the L1 norm of the sum. At its end, everything
    below the first block for which |n_before - n| / n_before is at or above the percentile freezes."""

    signals = frozenset({GRADIENTS})

    def __init__(self, situation: Situation, options: AutoFreezeOptions, steps: int) -> None:
        super().__init__(situation, steps, options.decisions, "autofreeze")
        self._percentile = options.percentile
        self._norms: tuple[float, ...] | None = None

    def _decide(self, observations: Observations) -> int:
        before, self._norms = self._norms, tuple(observations[GRADIENTS])
        if before is None:
            return self._frozen
        trained = slice(self._frozen, None)
        return self._frozen + _first_that_changes(before[trained], self._norms[trained], self._percentile)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "norms": None if self._norms is None else list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._norms = None if state["norms"] is None else tuple(state["norms"])


def _first_that_changes(before: Sequence[float], now: Sequence[float], percentile: float) -> int:
    """The first block whose norm has changed by a share at or above the percentile of all."""
    ratios = [abs(old - new) / old if old else 0.0 for old, new in zip(before, now, strict=True)]
    bound = float(np.percentile(ratios, percentile))
    return next(index for index, ratio in enumerate(ratios) if ratio >= bound)
