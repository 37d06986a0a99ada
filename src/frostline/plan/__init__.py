"""Plan and schedule as pure data. Imports no torch, so that a plan can be read and written on any machine."""

from frostline.plan import adapters
from frostline.plan._difference import difference, with_difference
from frostline.plan._forward import AdapterDrop, Forward, LayerDrop, Residual
from frostline.plan._mode import Adding, Mode, OwnTensors, Targeted, TargetModules, Targets
from frostline.plan._modes import BlockMode, Frozen, Full, Partial, PartMode
from frostline.plan._optimizer import FloraOptions, OptimArgs, read_optim_args
from frostline.plan._plan import Plan, block_ranges, named_blocks
from frostline.plan._schedule import (
    ChangedPlans,
    FixedSchedule,
    Observations,
    Rate,
    Schedule,
    keep_dropout,
    lowest_boundary,
    phases,
    rate_of,
    whole_plan,
)
from frostline.plan._split import Split
from frostline.plan._strip import CELLS, strip, strip_over_time
from frostline.plan._text import document, from_text, load_plan, save_plan, to_json, to_yaml
from frostline.plan._timetable import Timetable
from frostline.plan.adapters import Adapter, AddingMode, Bottleneck, Lora, Mixture, Peft, Prefix, Unipelt

__all__ = [
    "CELLS",
    "Adapter",
    "AdapterDrop",
    "Adding",
    "AddingMode",
    "BlockMode",
    "Bottleneck",
    "ChangedPlans",
    "FixedSchedule",
    "FloraOptions",
    "Forward",
    "Frozen",
    "Full",
    "LayerDrop",
    "Lora",
    "Mixture",
    "Mode",
    "Observations",
    "OptimArgs",
    "OwnTensors",
    "PartMode",
    "Partial",
    "Peft",
    "Plan",
    "Prefix",
    "Rate",
    "Residual",
    "Schedule",
    "Split",
    "TargetModules",
    "Targeted",
    "Targets",
    "Timetable",
    "Unipelt",
    "adapters",
    "block_ranges",
    "difference",
    "document",
    "from_text",
    "keep_dropout",
    "load_plan",
    "lowest_boundary",
    "named_blocks",
    "phases",
    "rate_of",
    "read_optim_args",
    "save_plan",
    "strip",
    "strip_over_time",
    "to_json",
    "to_yaml",
    "whole_plan",
    "with_difference",
]
