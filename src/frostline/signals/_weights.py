"""Signals of the weights: change, gradients, signal-to-noise ratio. Pure functions over tensors.

Tensors are given as mappings: name in the model -> tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

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
    return _ratios(block_norms(gradients, anatomy), block_norms(weights, anatomy))


def low_rank_norms(
    gradients: Mapping[str, Tensor], energy: Sequence[float], anatomy: Anatomy, rank: int = 8
) -> tuple[float, ...]:
    """The part of every block's gradient that an update of low rank could follow (methods.md 11).

    It is the root of the sum, over the block's matrices, of the `rank` largest squared singular values of the gradient
    (a matrix of that rank comes no nearer to it), over the root of the block's energy [inferred]. A tensor of several
    experts counts as its matrices. Infinite for a block whose energy is 0.

    Args:
        gradients: name -> gradient; a matrix without one counts as 0.
        energy: the mean squared norm of each block's input states.
        anatomy: of the model.
        rank: of the update to each matrix.
    """
    norms = []
    for block in anatomy.blocks:
        places = {linear.weight for linear in block.linears} & gradients.keys()
        norms.append(math.hypot(*(_low_rank_norm(gradients[name], rank) for name in sorted(places))))
    return _ratios(norms, [math.sqrt(one) for one in energy])


def _low_rank_norm(gradient: Tensor, rank: int) -> float:
    """Of a matrix [m, n], or of several of them [copies, m, n]."""
    return _norm(torch.linalg.svdvals(gradient.float())[..., :rank])


def _ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    return tuple(one / other if other else math.inf for one, other in zip(above, below, strict=True))


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
