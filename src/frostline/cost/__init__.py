"""What a plan costs, from a model's anatomy and a workload alone: parameters, operations, memory."""

from frostline.cost.activations import Saved, SavedByPart, saved
from frostline.cost.flops import Flops, StepFlops, flops_ratio, run_flops, run_flops_ratio, step_flops
from frostline.cost.flow import Flow, flow
from frostline.cost.memory import Memory, memory
from frostline.cost.parameters import full_plan, total_parameters, trainable_parameters
from frostline.cost.predict import Prediction, predict
from frostline.cost.workload import Workload, has_dropout

__all__ = [
    "Flops",
    "Flow",
    "Memory",
    "Prediction",
    "Saved",
    "SavedByPart",
    "StepFlops",
    "Workload",
    "flops_ratio",
    "flow",
    "full_plan",
    "has_dropout",
    "memory",
    "predict",
    "run_flops",
    "run_flops_ratio",
    "saved",
    "step_flops",
    "total_parameters",
    "trainable_parameters",
]
