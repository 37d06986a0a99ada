"""The trainer: a `transformers.Trainer` that trains what a plan says. Also optimizers and meters."""

from frostline.engine._attach import attach
from frostline.engine._flora import Flora
from frostline.engine._live import report_live
from frostline.engine._loops import LoopCache, activation_cache
from frostline.engine._meter import MemoryMeter, PeakOfSteps, StepMeter
from frostline.engine._progress import ProgressBar, StartBar, start_bar
from frostline.engine._sampler import GroupedByLength
from frostline.engine._sharding import asks_sharding, fill_from_first
from frostline.engine._start import PlanFor, ScheduleFor, same_for_all, streaming
from frostline.engine._trainer import Trainer

__all__ = [
    "Flora",
    "GroupedByLength",
    "LoopCache",
    "MemoryMeter",
    "PeakOfSteps",
    "PlanFor",
    "ProgressBar",
    "ScheduleFor",
    "StartBar",
    "StepMeter",
    "Trainer",
    "activation_cache",
    "asks_sharding",
    "attach",
    "fill_from_first",
    "report_live",
    "same_for_all",
    "start_bar",
    "streaming",
]
