"""Strategies: each chooses a plan, or a schedule of plans. Each is one function, and one line of the table."""

from frostline.strategies._adapted import ADDITIONS
from frostline.strategies._auto import AutoOptions, auto
from frostline.strategies._budget import Budget
from frostline.strategies._choice import GIVEN, Choice, Option
from frostline.strategies._contenders import Contenders, contenders, yardstick
from frostline.strategies._plans import freeze_blocks, task_head
from frostline.strategies._rounds import (
    OTHERS,
    Rounds,
    best_plan,
    best_rate,
    extrapolated,
    has_turned,
    next_rate,
    rounds,
)
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Measure, Situation
from frostline.strategies._strategy import NoOptions, Percent, Strategy
from frostline.strategies._table import STRATEGIES, known_names, make_selection, parse_name, read_options
from frostline.strategies._worth import PASSES, RATE_STEP

__all__ = [
    "ADDITIONS",
    "GIVEN",
    "OTHERS",
    "PASSES",
    "RATE_STEP",
    "STRATEGIES",
    "AutoOptions",
    "Budget",
    "Choice",
    "Contenders",
    "Measure",
    "NoOptions",
    "Option",
    "Percent",
    "Rounds",
    "Selection",
    "Situation",
    "Strategy",
    "auto",
    "best_plan",
    "best_rate",
    "contenders",
    "extrapolated",
    "fixed",
    "freeze_blocks",
    "has_turned",
    "known_names",
    "make_selection",
    "next_rate",
    "parse_name",
    "read_options",
    "rounds",
    "task_head",
    "yardstick",
]
