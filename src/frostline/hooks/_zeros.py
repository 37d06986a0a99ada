"""Zeros that take almost no memory in place of weights: a model runs on them to show which modules it calls."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn


def zero_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shape of every parameter and buffer of `module`, by name. Each holds a single element in memory.

    Stacked experts (three dimensions) are the exception, because grouped matrix products refuse strides of 0. They
    get ordinary zeros, shared by all tensors of a shape and made by numpy, whose zeros take no memory until written.
    """
    whole: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: _zeros_like(tensor, whole) for name, tensor in named}


def _zeros_like(tensor: Tensor, whole: dict[tuple[torch.Size, torch.dtype], Tensor]) -> Tensor:
    if tensor.dim() < 3:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    key = (tensor.shape, tensor.dtype)
    if key not in whole:
        zeros = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
        whole[key] = zeros.view(tensor.dtype).view(tensor.shape)
    return whole[key]
