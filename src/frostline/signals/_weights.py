"""Signals of the weights: change, gradients, signal-to-noise ratio. Pure functions over tensors.

Tensors are given as mappings: name in the model -> tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from frostline.anatomy import Anatomy, Block


def weight_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor], anatomy: Anatomy) -> tuple[float, ...]:
    """The change of each block between two states of its tensors, those of adapters included.

    It is the mean of the L2 norm of (after - before) over the block's tensors in `before` (methods.md 1: ADT); 0 for a
    block without any. Raises `KeyError` when one is missing from `after`.
    """
    return tuple(_mean_change(before, after, f"{block.name}.") for block in anatomy.blocks)


def _mean_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor], place: str) -> float:
    names = [name for name in before if name.startswith(place)]
    return sum(_norm(after[name].double() - before[name].double()) for name in names) / max(1, len(names))


def block_norms(tensors: Mapping[str, Tensor], anatomy: Anatomy) -> tuple[float, ...]:
    """For each block, the L2 norm over all of its tensors that `tensors` has."""
    return tuple(
        math.hypot(*(_norm(tensors[tensor.name]) for tensor in block.tensors if tensor.name in tensors))
        for block in anatomy.blocks
    )


def relative_norms(
    gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], anatomy: Anatomy
) -> tuple[float, ...]:
    """||g|| / ||w|| of every block (methods.md 6: Auto-RGN). Infinite for a block whose weights are 0."""
    pairs = zip(block_norms(gradients, anatomy), block_norms(weights, anatomy), strict=True)
    return tuple(gradient / weight if weight else math.inf for gradient, weight in pairs)


def spectral_snr(matrix: Tensor) -> float:
    """Spectrum's signal-to-noise ratio of a matrix [m, n] (methods.md 6).

    With its singular values S, sigma = IQR(S) / 1.349 and eps = sigma (1 + sqrt(min(m, n) / max(m, n))):
    (sum of S > eps) / (sum of S <= eps) / max S. Infinite where every singular value is above eps.
    """
    values = torch.linalg.svdvals(matrix.detach().float()).double()
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
    threshold = (high - low) / 1.349 * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    noise = float(values[values <= threshold].sum())
    return float(values[values > threshold].sum()) / noise / float(values.max()) if noise else math.inf


def block_snr(tensors: Mapping[str, Tensor], block: Block) -> Iterator[tuple[str, float]]:
    """(Name within the block, SNR) for each matrix of a block. For a tensor that holds several, their mean."""
    for linear in block.linears:
        weight = tensors[linear.weight]
        several = weight.reshape(linear.copies, *weight.shape[-2:])
        kind = linear.name.removeprefix(f"{block.name}.")
        yield kind, sum(spectral_snr(matrix) for matrix in several) / linear.copies


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
