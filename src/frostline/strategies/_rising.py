"""What strategies share that freeze the bottom for good, bit by bit, by what they observe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frostline.plan import Observations, Plan
from frostline.strategies._plans import decision_steps, freeze_blocks
from frostline.strategies._situation import Situation


class RisingBottom:
    """A schedule that decides at moments at equal distances how far the bottom is frozen. One block trains to the end.

    A subclass says what it observes (`signals`) and decides (`_decide`), and adds to the state what it remembers.

    Args:
        situation: the model.
        steps: of the training.
        decisions: how often it is decided.
        strategy: the strategy's name.
    """

    signals: frozenset[str]

    def __init__(self, situation: Situation, steps: int, decisions: int, strategy: str) -> None:
        self._situation, self._strategy = situation, strategy
        self._at = decision_steps(steps, decisions)
        self._step, self._frozen = 0, 0

    @property
    def first(self) -> Plan:
        return self._plan(0)

    @property
    def observes(self) -> frozenset[str]:
        return frozenset() if self.settled else self.signals

    @property
    def settled(self) -> bool:
        return self._step >= self._at[-1] or self._frozen >= self._last

    @property
    def lowest(self) -> int:
        """The boundary only rises."""
        return self._frozen

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step not in self._at:
            return None
        self._step, before = step, self._frozen
        self._frozen = self._decide(observations)
        return None if self._frozen == before else self._plan(self._frozen)

    def _decide(self, observations: Observations) -> int:
        """How many of the lowest blocks are frozen from now on; at least as many as before."""
        raise NotImplementedError

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        """As if each decision after the first froze one block."""
        plans = ((step, self._plan(min(number, self._last))) for number, step in enumerate(self._at[1:], start=1))
        return [(0, self.first), *((step, plan) for step, plan in plans if step < steps)]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "frozen": self._frozen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._frozen = state["step"], state["frozen"]

    @property
    def _last(self) -> int:
        return self._situation.blocks - 1

    def _plan(self, frozen: int) -> Plan:
        return freeze_blocks(self._situation, set(range(frozen)), self._strategy)
