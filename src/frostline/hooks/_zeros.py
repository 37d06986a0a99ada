"""Zeros that take almost no memory in place of weights: a model runs on them to show which modules it calls."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def zero_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shape of every parameter and buffer of `module`, by name. Parameters hold one element in memory.

    Stacked experts (three dimensions) are the exception, because grouped matrix products refuse strides of 0: all of a
    shape share ordinary zeros. A buffer has ordinary zeros of its own, because forward passes may write to it, as that
    of longrope does. Ordinary zeros are made by numpy, so that they take no memory until they are written.
    """
    whole: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    parameters = {name: _zeros_like(tensor, whole) for name, tensor in module.named_parameters()}
    return parameters | {name: _whole_zeros(tensor) for name, tensor in module.named_buffers()}


def _zeros_like(tensor: Tensor, whole: dict[tuple[torch.Size, torch.dtype], Tensor]) -> Tensor:
    if tensor.dim() < 3:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    key = (tensor.shape, tensor.dtype)
    if key not in whole:
        whole[key] = _whole_zeros(tensor)
    return whole[key]


def _whole_zeros(tensor: Tensor) -> Tensor:
    zeros = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
    return zeros.view(tensor.dtype).view(tensor.shape)
