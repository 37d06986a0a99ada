"""The trainer: a `transformers.Trainer` that trains what a plan says. Also optimizers and meters."""

from frostline.engine._attach import attach
from frostline.engine._flora import Flora
from frostline.engine._loops import LoopCache, activation_cache
from frostline.engine._meter import MemoryMeter, StepMeter
from frostline.engine._progress import ProgressBar, start_bar
from frostline.engine._sampler import GroupedByLength
from frostline.engine._sharding import check_unsharded
from frostline.engine._start import PlanFor, ScheduleFor
from frostline.engine._trainer import Trainer

__all__ = [
    "Flora",
    "GroupedByLength",
    "LoopCache",
    "MemoryMeter",
    "PlanFor",
    "ProgressBar",
    "ScheduleFor",
    "StepMeter",
    "Trainer",
    "activation_cache",
    "attach",
    "check_unsharded",
    "start_bar",
]
