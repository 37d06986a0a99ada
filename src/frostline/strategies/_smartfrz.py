"""SmartFRZ: a trained predictor says from the history of a block's weights whether it has settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations, Plan
from frostline.strategies._plans import decision_steps, freeze_blocks
from frostline.strategies._predictor import features, trained_predictor
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation

MOTION, RATE = "weight_motion", "learning_rate"


class SmartFrzOptions(Options):
    """The options of SmartFRZ.

    Attributes:
        decisions: how often in the whole training it is decided what freezes, at equal distances. The predictor was
            trained with 19.
        threshold: a block freezes, if all below it are frozen, when the predictor gives it at least this probability of
            having settled.
    """

    decisions: PositiveInt = 19
    threshold: float = Field(0.5, gt=0, lt=1)


def smartfrz(situation: Situation, options: SmartFrzOptions) -> Selection:
    """SmartFRZ (Li et al. 2022): blocks that a predictor holds to be settled freeze, from the bottom, for good.

    Raises `ConfigError` where the number of steps is not known.
    """
    return Selection(_SmartFrz(situation, options, situation.known_steps("smartfrz")))


class _SmartFrz:
    """The history is `weight_motion` of every block, and the learning rate, at each decision so far."""

    def __init__(self, situation: Situation, options: SmartFrzOptions, steps: int) -> None:
        self._situation, self._threshold, self._steps = situation, options.threshold, steps
        self._at = decision_steps(steps, options.decisions)
        self._step, self._frozen = 0, 0
        self._motion: list[list[float]] = []
        self._rates: list[float] = []
        self._predictor = trained_predictor()

    @property
    def first(self) -> Plan:
        return self._plan(0)

    @property
    def observes(self) -> frozenset[str]:
        return frozenset() if self.settled else frozenset({MOTION, RATE})

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
        self._step, before = step, self._frozen
        self._motion.append(list(observations[MOTION]))
        self._rates.append(observations[RATE][0])
        while self._frozen < self._situation.blocks - 1 and self._has_settled(self._frozen):
            self._frozen += 1
        return None if self._frozen == before else self._plan(self._frozen)

    def _has_settled(self, block: int) -> bool:
        with torch.no_grad():
            logit = self._predictor(*features(self._motion, self._rates, block, self._step / self._steps))
        return float(logit.sigmoid()) >= self._threshold

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        """As if each decision after the first froze one block."""
        last = self._situation.blocks - 1
        plans = ((step, self._plan(min(number, last))) for number, step in enumerate(self._at[1:], start=1))
        return [(0, self.first), *((step, plan) for step, plan in plans if step < steps)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "frozen": self._frozen,
            "motion": [list(moment) for moment in self._motion],
            "rates": list(self._rates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._frozen = state["step"], state["frozen"]
        self._motion, self._rates = [list(moment) for moment in state["motion"]], list(state["rates"])

    def _plan(self, frozen: int) -> Plan:
        return freeze_blocks(self._situation, set(range(frozen)), "smartfrz")
