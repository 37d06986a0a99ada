"""A strategy whose plan never stops changing: what two blocks train moves up the stack, by what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt

from frostline.core.settings import Options
from frostline.plan import Observations, Plan
from frostline.strategies import Selection, Situation, Strategy, freeze_blocks

CHANGE = "weight_change"


class RotatingOptions(Options):
    """`every`: steps between two changes of the plan."""

    every: PositiveInt = 3


class Rotating:
    """Two blocks train; every few steps the one that changed less makes room for the next block in turn."""

    observes = frozenset({CHANGE})
    settled = False

    def __init__(self, situation: Situation, every: int) -> None:
        self._situation, self._every = situation, every
        self._trained, self._next = [0, 1], 2

    @property
    def first(self) -> Plan:
        return self._plan([0, 1])

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step % self._every:
            return None
        change, blocks = observations[CHANGE], self._situation.blocks
        kept = max(self._trained, key=lambda block: change[block])
        coming = self._next if self._next != kept else (self._next + 1) % blocks
        self._trained, self._next = sorted([kept, coming]), (coming + 1) % blocks
        return self._plan(self._trained)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self._trained, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._trained, self._next = list(state["trained"]), state["next"]

    def _plan(self, trained: list[int]) -> Plan:
        return freeze_blocks(self._situation, set(range(self._situation.blocks)) - set(trained), "rotating")


def rotating(situation: Situation, options: RotatingOptions) -> Selection:
    """Two blocks at a time, others every few steps, to the end."""
    return Selection(Rotating(situation, options.every))


ROTATING = Strategy("two blocks at a time, for ever", rotating, RotatingOptions)
