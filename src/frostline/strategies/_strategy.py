"""What a strategy is: a function from a situation and its options to a selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from frostline.core.settings import Options
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation


def _a_size(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (value >= 0 and value == int(value))):
        raise ValueError("give a share of the blocks, above 0 and below 1, or a number of blocks")
    return value if 0 < value < 1 else int(value)


Size = Annotated[float | int, BeforeValidator(_a_size)]
"""A share of the blocks (below 1), or a number of blocks."""


class NoOptions(Options):
    """A strategy that has no options."""


class Percent(Options):
    """The number after a strategy's name: how many percent of the blocks are frozen."""

    percent: int


Choose = Callable[[Situation, Any], Selection]


@dataclass(frozen=True)
class Strategy:
    """One entry of the table of strategies.

    `choose(situation, options)` gives the selection. `options` is what a user may set, and their defaults; where it
    is a `Percent`, a number of `percents` follows the name: any of a range such as ``range(1, 100)``, or some.
    `counts` names options that may follow it as numbers in brackets, `hlpt(24,8)`. `read` reads the options in another
    way than by their type. `plans`: it takes a budget into account.
    """

    summary: str
    choose: Choose
    options: type[Options] = NoOptions
    percents: range | tuple[int, ...] = ()
    plans: bool = False
    counts: tuple[str, ...] = ()
    read: Callable[[Any, str], Any] | None = None
