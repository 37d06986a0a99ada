"""Strategies: each chooses a plan, or a schedule of plans. Each is one function, and one line of the table."""

from frostline.strategies._adapted import ADDITIONS
from frostline.strategies._budget import Budget
from frostline.strategies._choice import Choice
from frostline.strategies._plans import freeze_blocks, task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Measure, Situation
from frostline.strategies._strategy import NoOptions, Percent, Strategy
from frostline.strategies._table import STRATEGIES, known_names, make_selection, parse_name

__all__ = [
    "ADDITIONS",
    "STRATEGIES",
    "Budget",
    "Choice",
    "Measure",
    "NoOptions",
    "Percent",
    "Selection",
    "Situation",
    "Strategy",
    "fixed",
    "freeze_blocks",
    "known_names",
    "make_selection",
    "parse_name",
    "task_head",
]
