"""A strategy: a function from a situation and options to a selection."""

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
        raise ValueError("use a share of the blocks, above 0 and below 1, or a number of blocks")
    return value if 0 < value < 1 else int(value)


Size = Annotated[float | int, BeforeValidator(_a_size)]
"""A share of the blocks (below 1), or a number of blocks."""


class NoOptions(Options):
    """A strategy that has no options."""


class Percent(Options):
    """The number after a strategy's name.

    Attributes:
        percent: how many percent of the blocks are frozen.
    """

    percent: int


Choose = Callable[[Situation, Any], Selection]


@dataclass(frozen=True)
class Strategy:
    """One entry of the table of strategies.

    Attributes:
        summary: what it does, in a few words.
        choose: makes the selection from a situation and the options.
        options: the options that a user may set, with their defaults.
        percents: the numbers that may follow the name, where `options` is a `Percent`, as in `bot50`.
        counts: names of options that may follow the name as numbers in brackets, as in `hlpt(24,8)`.
        read: reads the options, where that needs more than their type.
        addition: what is added to its plan where the name adds nothing (`ADDITIONS`).
    """

    summary: str
    choose: Choose
    options: type[Options] = NoOptions
    percents: range | tuple[int, ...] = ()
    counts: tuple[str, ...] = ()
    read: Callable[[Any, str], Any] | None = None
    addition: str = ""
