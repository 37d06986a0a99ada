"""Strategies choose a schedule. Each is a function in one file and one line of the table."""

from frostline.strategies._adapted import ADDITIONS
from frostline.strategies._base import Measure, NoOptions, Percent, Situation, Strategy, fixed, freeze_blocks, task_head
from frostline.strategies._budget import Budget
from frostline.strategies._choice import Choice
from frostline.strategies._split import SplitSchedule
from frostline.strategies._table import STRATEGIES, choose_schedule, known_names, parse_name

__all__ = [
    "ADDITIONS",
    "STRATEGIES",
    "Budget",
    "Choice",
    "Measure",
    "NoOptions",
    "Percent",
    "Situation",
    "SplitSchedule",
    "Strategy",
    "choose_schedule",
    "fixed",
    "freeze_blocks",
    "known_names",
    "parse_name",
    "task_head",
]
