"""What anything that runs a model by itself needs: its modes put back, its device, a block's hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode; afterwards each is as it was (frozen blocks never train)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: the device of its first parameter that is in memory."""
    return next(parameter.device for parameter in model.parameters() if not parameter.is_meta)


def hidden_of(output: Any) -> Tensor:
    """The hidden states [B, T, d] in what a block returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
