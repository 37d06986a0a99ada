"""Re-entrant activation checkpointing: such a block trains only where the states that it is given require gradients."""

from __future__ import annotations

from typing import Any

from torch import nn


def checkpoints_reentrantly(model: nn.Module) -> bool:
    """Whether a block of `model` is checkpointed with `use_reentrant=True`."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            func: Any = getattr(module, "_gradient_checkpointing_func", None)
            if (getattr(func, "keywords", None) or {}).get("use_reentrant", False):
                return True
    return False
