"""Plan and schedule as pure data. Imports no torch, so that a plan can be read and written on any machine."""

from frostline.plan import adapters
from frostline.plan._forward import AdapterDrop, Forward, LayerDrop, Residual
from frostline.plan._mode import Adding, Mode, OwnTensors, Targeted, TargetModules, Targets
from frostline.plan._modes import BlockMode, Frozen, Full, Partial, PartMode
from frostline.plan._optimizer import FloraOptions, OptimArgs, read_optim_args
from frostline.plan._plan import Plan, block_ranges, named_blocks
from frostline.plan._schedule import ChangedPlans, FixedSchedule, Observations, Schedule, keep_dropout
from frostline.plan._split import Split
from frostline.plan._strip import strip
from frostline.plan._text import document, from_text, load_plan, save_plan, to_json, to_yaml
from frostline.plan.adapters import Adapter, AddingMode, Bottleneck, Lora, Mixture, Peft, Prefix, Unipelt

__all__ = [
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
    "Residual",
    "Schedule",
    "Split",
    "TargetModules",
    "Targeted",
    "Targets",
    "Unipelt",
    "adapters",
    "block_ranges",
    "document",
    "from_text",
    "keep_dropout",
    "load_plan",
    "named_blocks",
    "read_optim_args",
    "save_plan",
    "strip",
    "to_json",
    "to_yaml",
]
