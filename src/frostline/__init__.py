"""frostline decides which layers of a language model to fine-tune, and saves time and memory on the frozen ones.

Names load when they are first used, so that plans and reports need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.adapters import HybridConfig
    from frostline.checkpoints import export_lora, load, merge
    from frostline.core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        FrostlineError,
        PlanError,
        TrainingError,
        UnsupportedModel,
        UserError,
    )
    from frostline.engine import activation_cache
    from frostline.hooks import begin_step
    from frostline.plan import Plan, load_plan, save_plan
    from frostline.run import RunConfig, Trainer, attach, make_plan, make_schedule, train
    from frostline.strategies import Budget
    from frostline.surgery import apply

_PLACES = {
    "Budget": "frostline.strategies",
    "CheckpointError": "frostline.core.errors",
    "ConfigError": "frostline.core.errors",
    "DataError": "frostline.core.errors",
    "FrostlineError": "frostline.core.errors",
    "HybridConfig": "frostline.adapters",
    "Plan": "frostline.plan",
    "PlanError": "frostline.core.errors",
    "RunConfig": "frostline.run",
    "Trainer": "frostline.run",
    "TrainingError": "frostline.core.errors",
    "UnsupportedModel": "frostline.core.errors",
    "UserError": "frostline.core.errors",
    "activation_cache": "frostline.engine",
    "apply": "frostline.surgery",
    "attach": "frostline.run",
    "begin_step": "frostline.hooks",
    "export_lora": "frostline.checkpoints",
    "load": "frostline.checkpoints",
    "load_plan": "frostline.plan",
    "make_plan": "frostline.run",
    "make_schedule": "frostline.run",
    "merge": "frostline.checkpoints",
    "save_plan": "frostline.plan",
    "train": "frostline.run",
}

__all__ = [
    "Budget",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FrostlineError",
    "HybridConfig",
    "Plan",
    "PlanError",
    "RunConfig",
    "Trainer",
    "TrainingError",
    "UnsupportedModel",
    "UserError",
    "activation_cache",
    "apply",
    "attach",
    "begin_step",
    "export_lora",
    "load",
    "load_plan",
    "make_plan",
    "make_schedule",
    "merge",
    "save_plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'frostline' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
