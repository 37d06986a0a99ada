"""AutoFreeze: the bottom freezes up to the first block whose gradients still change (methods.md 6 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations, Plan
from frostline.strategies._plans import decision_steps, freeze_blocks
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


class _AutoFreeze:
    """In each interval the gradients of a block are summed up; n is the L1 norm of the sum. At its end, everything
    below the first block for which |n_before - n| / n_before is at or above the percentile freezes."""

    def __init__(self, situation: Situation, options: AutoFreezeOptions, steps: int) -> None:
        self._situation, self._percentile = situation, options.percentile
        self._at = decision_steps(steps, options.decisions)
        self._step, self._frozen = 0, 0
        self._norms: tuple[float, ...] | None = None

    @property
    def first(self) -> Plan:
        return self._plan(0)

    @property
    def observes(self) -> frozenset[str]:
        return frozenset() if self.settled else frozenset({GRADIENTS})

    @property
    def settled(self) -> bool:
        return self._step >= self._at[-1] or self._frozen >= self._situation.blocks - 1

    @property
    def lowest(self) -> int:
        """The boundary only rises."""
        return self._frozen

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step not in self._at:
            return None
        self._step = step
        before, self._norms = self._norms, tuple(observations[GRADIENTS])
        if before is None:
            return None
        first = _first_that_changes(before[self._frozen :], self._norms[self._frozen :], self._percentile)
        if not first:
            return None
        self._frozen += first
        return self._plan(self._frozen)

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        """As if each decision after the first froze one block."""
        last = self._situation.blocks - 1
        plans = ((step, self._plan(min(number, last))) for number, step in enumerate(self._at[1:], start=1))
        return [(0, self.first), *((step, plan) for step, plan in plans if step < steps)]

    def state_dict(self) -> dict[str, Any]:
        norms = None if self._norms is None else list(self._norms)
        return {"step": self._step, "frozen": self._frozen, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._frozen = state["step"], state["frozen"]
        self._norms = None if state["norms"] is None else tuple(state["norms"])

    def _plan(self, frozen: int) -> Plan:
        return freeze_blocks(self._situation, set(range(frozen)), "autofreeze")


def _first_that_changes(before: Sequence[float], now: Sequence[float], percentile: float) -> int:
    """The first block whose norm has changed by a share at or above the percentile of all."""
    ratios = [abs(old - new) / old if old else 0.0 for old, new in zip(before, now, strict=True)]
    bound = float(np.percentile(ratios, percentile))
    return next(index for index, ratio in enumerate(ratios) if ratio >= bound)
