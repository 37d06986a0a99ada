"""By which of its attributes a module drops something at random."""

from __future__ import annotations

from torch import nn


def drops_by(module: nn.Module) -> str | None:
    """The attribute by which a module drops something at random in train mode; None where it drops nothing."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "p" if module.p > 0 else None
    values = ((name, value) for name, value in vars(module).items() if "drop" in name and isinstance(value, float))
    return next((name for name, value in values if value > 0), None)
