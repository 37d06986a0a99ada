"""Plan and schedule as pure data. Imports no torch: a plan is read and written on any machine."""

from frostline.plan.modes import BlockMode, Frozen, Full, Lora, Options, Partial, PartMode
from frostline.plan.plan import Plan, block_ranges, first_error
from frostline.plan.schedule import FixedSchedule, Observations, Schedule
from frostline.plan.strip import strip
from frostline.plan.text import document, from_text, load_plan, save_plan, to_json, to_yaml

__all__ = [
    "BlockMode",
    "FixedSchedule",
    "Frozen",
    "Full",
    "Lora",
    "Observations",
    "Options",
    "PartMode",
    "Partial",
    "Plan",
    "Schedule",
    "block_ranges",
    "document",
    "first_error",
    "from_text",
    "load_plan",
    "save_plan",
    "strip",
    "to_json",
    "to_yaml",
]
