"""SmartFRZ: a trained predictor says from the history of a block's weights whether it has settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations
from frostline.strategies._predictor import features, trained_predictor
from frostline.strategies._rising import RisingBottom
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


class _SmartFrz(RisingBottom):
    """The history is `weight_motion` of every block, and the learning rate, at each decision so far."""

    signals = frozenset({MOTION, RATE})

    def __init__(self, situation: Situation, options: SmartFrzOptions, steps: int) -> None:
        super().__init__(situation, steps, options.decisions, "smartfrz")
        self._threshold, self._steps = options.threshold, steps
        self._motion: list[list[float]] = []
        self._rates: list[float] = []
        self._predictor = trained_predictor()

    def _decide(self, observations: Observations) -> int:
        self._motion.append(list(observations[MOTION]))
        self._rates.append(observations[RATE][0])
        frozen = self._frozen
        while frozen < self._last and self._has_settled(frozen):
            frozen += 1
        return frozen

    def _has_settled(self, block: int) -> bool:
        with torch.no_grad():
            logit = self._predictor(*features(self._motion, self._rates, block, self._step / self._steps))
        return float(logit.sigmoid()) >= self._threshold

    def state_dict(self) -> dict[str, Any]:
        motion = [list(moment) for moment in self._motion]
        return {**super().state_dict(), "motion": motion, "rates": list(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._motion, self._rates = [list(moment) for moment in state["motion"]], list(state["rates"])
