"""A schedule whose plans, and the steps at which they begin, are known before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from frostline.plan._plan import Plan
from frostline.plan._schedule import Observations, Rate


class Timetable:
    """Plans that are known before training. A random draw by a seed is known too.

        def plans():
            yield 0, first
            yield 100, second

        schedule = Timetable(plans, steps=300)

    Args:
        plans: gives the plans from the first on, each with the step that it begins at. The steps rise, and there may be
            no end. It is called again for a training that is resumed, and gives the same plans then.
        steps: of the training, where they are known: the lowest boundary to come is then known too.
        rate: the learning rates, where the schedule sets them itself (`Schedule`).
    """

    observes: frozenset[str] = frozenset()

    def __init__(
        self, plans: Callable[[], Iterator[tuple[int, Plan]]], steps: int | None = None, rate: Rate | None = None
    ) -> None:
        self._plans, self._steps, self.rate = plans, steps, rate
        self._lowest: list[tuple[int, int]] | None = None  # (last step, lowest boundary of the plans up to the end)
        self._go_to(0)

    @property
    def first(self) -> Plan:
        return next(self._plans())[1]

    @property
    def settled(self) -> bool:
        return self._coming is None

    @property
    def lowest(self) -> int:
        """The lowest boundary from now on; 0 where the number of steps is not known."""
        if self._steps is None:
            return 0
        if self._lowest is None:
            found, lowest = [], None
            for step, plan in reversed(self.phases(self._steps)):
                lowest = plan.boundary if lowest is None else min(lowest, plan.boundary)
                found.append((step, lowest))
            self._lowest = found
        while len(self._lowest) > 1 and self._lowest[-2][0] <= self._step:
            self._lowest.pop()
        return min(self._lowest[-1][1], self._current.boundary)

    def next(self, step: int, observations: Observations) -> Plan | None:
        before = self._current
        self._forward(step)
        return None if self._current == before else self._current

    def phases(self, steps: int) -> list[tuple[int, Plan]]:
        """The plans of the first `steps` steps, each with its first step."""
        return list(takewhile(lambda entry: entry[0] < steps, self._plans()))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lowest = None
        self._go_to(state["step"])

    def _go_to(self, step: int) -> None:
        self._left = self._plans()
        self._current, self._coming = next(self._left)[1], next(self._left, None)
        self._forward(step)

    def _forward(self, step: int) -> None:
        self._step = step
        while self._coming is not None and self._coming[0] <= step:
            self._current, self._coming = self._coming[1], next(self._left, None)
