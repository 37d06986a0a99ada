"""What a user brings is called beforehand without a trace."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from frostline.hooks import state_kept


class Collator:
    """Draws from every kind of generator that it may own, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[int] = []
        self.torch = torch.Generator().manual_seed(1)
        self.python = random.Random(1)
        self.numpy = np.random.default_rng(1)
        self.old = np.random.RandomState(1)
        self.inner = {"deep": torch.Generator().manual_seed(2)}

    def __call__(self, rows: Any) -> list[float]:
        self.calls += 1
        self.seen.append(self.calls)
        drawn = [float(torch.rand((), generator=some)) for some in (self.torch, self.inner["deep"], None)]
        own = [self.python.random(), float(self.numpy.random()), float(self.old.random_sample())]
        return [*drawn, *own, random.random(), float(np.random.rand()), float(self.calls), float(len(self.seen))]


def closure() -> Callable[[Any], list[float]]:
    generator, count, calls = torch.Generator().manual_seed(3), 0, []

    def collate(rows: Any) -> list[float]:
        nonlocal count
        count += 1
        calls.append(rows)
        return [float(torch.rand((), generator=generator)), count, len(calls)]

    return collate


@pytest.mark.parametrize(
    "make",
    [Collator, closure, lambda: Collator().__call__, lambda: functools.partial(Collator(), rows=None)],
    ids=["object", "function", "method", "partial"],
)
def test_a_call_beforehand_changes_nothing(make: Callable[[], Any]) -> None:
    used, other = make(), make()
    arguments = () if isinstance(used, functools.partial) else (None,)

    def drawn(collate: Any) -> list[Any]:
        return [collate(*arguments) for _ in range(3)]

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = drawn(other)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with state_kept(used):
        assert drawn(used) == expected
    assert drawn(used) == expected
