"""ADT: train all blocks for a few steps, then freeze the blocks that changed least, or most (methods.md 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt

from frostline.plan import Observations, Plan
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._presets import frozen_count
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Percent

CHANGE = "weight_change"


class AdtOptions(Percent):
    """The options of ADT.

    Attributes:
        warmup_steps: how many optimizer steps train all blocks before the choice.
    """

    warmup_steps: PositiveInt = 5


def least_changed(situation: Situation, options: AdtOptions) -> Selection:
    """ADT-L: after the first steps, freeze the P percent of the blocks that changed least. Training goes on."""
    return Selection(_Adt(situation, options, f"adt-l{options.percent}", most=False))


def most_changed(situation: Situation, options: AdtOptions) -> Selection:
    """ADT-H: after the first steps, freeze the P percent of the blocks that changed most. Training goes on."""
    return Selection(_Adt(situation, options, f"adt-h{options.percent}", most=True))


class _Adt:
    """All blocks train until `warmup_steps`, then those that were not chosen. Embeddings are always frozen."""

    def __init__(self, situation: Situation, options: AdtOptions, name: str, *, most: bool) -> None:
        self._situation, self._name, self._most = situation, name, most
        self._count = frozen_count(options.percent, situation.blocks)
        self._steps = options.warmup_steps
        self._frozen: tuple[int, ...] | None = None

    @property
    def first(self) -> Plan:
        return freeze_blocks(self._situation, set(), self._name)

    @property
    def observes(self) -> frozenset[str]:
        return frozenset() if self.settled else frozenset({CHANGE})

    @property
    def settled(self) -> bool:
        return self._frozen is not None

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step < self._steps or self.settled:
            return None
        change = observations[CHANGE]
        ranked = sorted(range(len(change)), key=lambda block: (-change[block] if self._most else change[block], block))
        self._frozen = tuple(sorted(ranked[: self._count]))
        return freeze_blocks(self._situation, set(self._frozen), self._name)

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": None if self._frozen is None else list(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._frozen = None if state["frozen"] is None else tuple(state["frozen"])
