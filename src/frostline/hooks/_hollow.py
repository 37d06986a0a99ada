"""Tensors without weight: a model runs on them to show what it calls, in no memory and no time to speak of."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn


def hollow(module: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shape of every parameter and buffer of `module`, each one element large.

    Stacked experts are whole zeros, one for all tensors of a shape: grouped products refuse strides of 0. They come
    from numpy, whose zeros take no memory before they are written to.
    """
    whole: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: _hollow(tensor, whole) for name, tensor in named}


def _hollow(tensor: Tensor, whole: dict[tuple[torch.Size, torch.dtype], Tensor]) -> Tensor:
    if tensor.dim() < 3:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    key = (tensor.shape, tensor.dtype)
    if key not in whole:
        zeros = torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), dtype=np.uint8))
        whole[key] = zeros.view(tensor.dtype).view(tensor.shape)
    return whole[key]
