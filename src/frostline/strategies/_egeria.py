"""Egeria: the lowest block freezes when its outputs have stopped moving against a reference (methods.md 6 and 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations, Plan
from frostline.strategies._plans import decision_steps, freeze_blocks
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation

PLASTICITY, RATE, LOWEST_RATE = "plasticity", "learning_rate", "lowest_learning_rate"
DROP = 10.0


class EgeriaOptions(Options):
    """The options of Egeria.

    Attributes:
        decisions: how often in the whole training it is decided what freezes, at equal distances.
        window: over how many decisions the plasticity is averaged, and a slope fitted (the paper's W). After so many
            decisions in a row with a small slope, the block freezes.
        tolerance: a slope is small up to this share of the largest slope that the block had.
        refresh: after how many decisions the reference is made anew; None: after `window`, so that the average always
            covers one life of the reference.
        thaw: whether all blocks train again each time that the learning rate has dropped by 10.
        halve: whether each thaw halves the window, so that blocks freeze again sooner.
    """

    decisions: PositiveInt = 50
    window: PositiveInt = 3
    tolerance: float = Field(0.2, ge=0)
    refresh: PositiveInt | None = None
    thaw: bool = True
    halve: bool = True


def egeria(situation: Situation, options: EgeriaOptions) -> Selection:
    """Egeria (Wang et al. 2023): blocks whose outputs no longer move freeze, from the bottom, until the rate drops.

    Raises `ConfigError` where the number of steps is not known.
    """
    return Selection(_Egeria(situation, options, situation.known_steps("egeria")))


class _Egeria:
    """At each decision the plasticity of the lowest trained block is measured. The slope of its moving average is that
    of a line fitted to the last values."""

    def __init__(self, situation: Situation, options: EgeriaOptions, steps: int) -> None:
        self._situation, self._options = situation, options
        self._at = decision_steps(steps, options.decisions)
        self._step, self._frozen, self._window = 0, 0, options.window
        self._highest = 0.0  # the learning rate from which it has to drop by 10: the highest since it last did
        self._drops = options.thaw  # whether it will, as far as is known
        self._begin_block()

    def _begin_block(self) -> None:
        self._values: list[float] = []
        self._steepest, self._flat = 0.0, 0

    @property
    def first(self) -> Plan:
        return self._plan(0)

    @property
    def observes(self) -> frozenset[str]:
        if self.settled:
            return frozenset()
        return frozenset({self._signal, RATE, LOWEST_RATE} if self._options.thaw else {self._signal})

    @property
    def settled(self) -> bool:
        return self._step >= self._at[-1] or (self._all_frozen and not self._drops)

    @property
    def lowest(self) -> int:
        """The boundary rises until the next thaw, if there will be one."""
        return 0 if self._drops else self._frozen

    @property
    def _signal(self) -> str:
        return f"{PLASTICITY}/{self._options.refresh or self._window}"

    @property
    def _all_frozen(self) -> bool:
        return self._frozen >= self._situation.blocks - 1

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step not in self._at:
            return None
        self._step = step
        if self._options.thaw and self._has_dropped(observations) and self._frozen:
            self._thaw()
            return self._plan(0)
        if self._all_frozen or not self._has_stopped(observations[self._signal][self._frozen]):
            return None
        self._frozen += 1
        self._begin_block()
        return self._plan(self._frozen)

    def _has_dropped(self, observations: Observations) -> bool:
        now, lowest = observations[RATE][0], observations[LOWEST_RATE][0]
        dropped, rises = now <= self._highest / DROP, now > self._highest
        if dropped or rises:
            self._highest = now
        self._drops = rises or lowest <= self._highest / DROP
        return dropped

    def _thaw(self) -> None:
        self._frozen = 0
        if self._options.halve:
            self._window = max(1, self._window // 2)
        self._begin_block()

    def _has_stopped(self, plasticity: float) -> bool:
        window, least = self._window, max(2, self._window)  # a line needs two points
        self._values = [*self._values, plasticity][-(window + least - 1) :]
        if len(self._values) < window + 1:
            return False
        slope = abs(_slope(np.convolve(self._values, np.ones(window) / window, mode="valid")))
        self._steepest = max(self._steepest, slope)
        self._flat = self._flat + 1 if slope <= self._options.tolerance * self._steepest else 0
        return self._flat >= window

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        """As if each block froze as soon as it can, and nothing thawed."""
        each, last = 2 * self._options.window, self._situation.blocks - 1
        plans = ((step, self._plan(min(number, last))) for number, step in enumerate(self._at[each - 1 :: each], 1))
        return [(0, self.first), *((step, plan) for step, plan in plans if step < steps)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "frozen": self._frozen,
            "window": self._window,
            "highest": self._highest,
            "drops": self._drops,
            "values": list(self._values),
            "steepest": self._steepest,
            "flat": self._flat,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._frozen, self._window = state["step"], state["frozen"], state["window"]
        self._highest, self._drops = state["highest"], state["drops"]
        self._values, self._steepest, self._flat = list(state["values"]), state["steepest"], state["flat"]

    def _plan(self, frozen: int) -> Plan:
        return freeze_blocks(self._situation, set(range(frozen)), "egeria")


def _slope(values: np.ndarray) -> float:
    """The slope of the line that fits best; exactly 0 for equal values."""
    places = np.arange(len(values)) - (len(values) - 1) / 2
    return float(places @ (values - values[0]) / (places @ places))
