"""One run end to end: config -> model, data, schedule, trainer, record; and what is done with a run after."""

from frostline.run._config import RunConfig, read_config
from frostline.run._fill import Filled, fill_cache
from frostline.run._folder import how_to_go_on
from frostline.run._make import make_plan, make_schedule
from frostline.run._probing import probe_model
from frostline.run._ray import fill_with_ray
from frostline.run._setup import anatomy_of, class_for, load_model
from frostline.run._trainer import Trainer, attach
from frostline.run._training import train
from frostline.run._trials import TRIALS_FILE
from frostline.run._trying import check_trials
from frostline.run._using import PlannedModel, evaluate_target, generate_target, inspect_model, is_run, plan_model
from frostline.run._versions import versions

__all__ = [
    "TRIALS_FILE",
    "Filled",
    "PlannedModel",
    "RunConfig",
    "Trainer",
    "anatomy_of",
    "attach",
    "check_trials",
    "class_for",
    "evaluate_target",
    "fill_cache",
    "fill_with_ray",
    "generate_target",
    "how_to_go_on",
    "inspect_model",
    "is_run",
    "load_model",
    "make_plan",
    "make_schedule",
    "plan_model",
    "probe_model",
    "read_config",
    "train",
    "versions",
]
