"""What a plan costs, from a model's anatomy and a workload alone: parameters, operations, memory."""

from frostline.cost._activations import Saved, SavedByPart, saved
from frostline.cost._cache import Estimate, cache_estimate, cache_pays
from frostline.cost._evaluation import EvaluationWork, evaluation_memory, rows_within
from frostline.cost._flops import (
    Flops,
    StepFlops,
    bottom_flops,
    caching_flops,
    flops_ratio,
    run_flops,
    run_flops_ratio,
    step_flops,
)
from frostline.cost._flora import projected_side, state_numbers, sum_numbers
from frostline.cost._flow import Flow, flow
from frostline.cost._memory import Memory, memory
from frostline.cost._optimizer import check_optim, optim_names, optimizer_notice
from frostline.cost._parameters import full_plan, total_parameters, trainable_parameters
from frostline.cost._phases import predict_phases
from frostline.cost._predict import Prediction, predict
from frostline.cost._speed import Speed, StepTimes, fit_speed, run_seconds, step_seconds
from frostline.cost._workload import Workload, has_dropout, storage_dtype

__all__ = [
    "Estimate",
    "EvaluationWork",
    "Flops",
    "Flow",
    "Memory",
    "Prediction",
    "Saved",
    "SavedByPart",
    "Speed",
    "StepFlops",
    "StepTimes",
    "Workload",
    "bottom_flops",
    "cache_estimate",
    "cache_pays",
    "caching_flops",
    "check_optim",
    "evaluation_memory",
    "fit_speed",
    "flops_ratio",
    "flow",
    "full_plan",
    "has_dropout",
    "memory",
    "optim_names",
    "optimizer_notice",
    "predict",
    "predict_phases",
    "projected_side",
    "rows_within",
    "run_flops",
    "run_flops_ratio",
    "run_seconds",
    "saved",
    "state_numbers",
    "step_flops",
    "step_seconds",
    "storage_dtype",
    "sum_numbers",
    "total_parameters",
    "trainable_parameters",
]
