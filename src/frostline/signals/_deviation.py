"""How the hidden states at a token change from block to block: pure functions over tensors.

N rows, R tokens that are read, V vocabulary, d hidden width, L blocks
h_0 the embeddings' output, h_k the output of block k (counted from 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from frostline.signals._measurement import Measurement, standard_error

_CHUNK = 8192
_SINGULAR = 1e-6  # relative to the largest one: smaller values are 0 as far as float32 weights can tell


class SemanticBasis:
    """The place of each label in latent space: s_y = e_y pinv(W)', for the head's weight W [V, d] (methods.md 3).

    It equals w_y (W'W)^-1, so one d x d matrix is factorised, and only the labels' rows of W are used. Where W'W is
    singular, its pseudo-inverse replaces the inverse, and the equation still holds.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
        for start in range(0, len(self.weight), _CHUNK):
            rows = self.weight[start : start + _CHUNK].double()
            gram += rows.T @ rows
        factor, failed = torch.linalg.cholesky_ex(gram)
        scales = factor.diagonal()
        if failed or scales.min() < _SINGULAR * scales.max():
            self._inverse = torch.linalg.pinv(gram, rtol=_SINGULAR**2, hermitian=True)
        else:
            self._inverse = torch.cholesky_inverse(factor)

    def __call__(self, labels: Tensor) -> Tensor:
        """The basis vectors [R, d] of the tokens `labels` [R]."""
        vectors: Tensor = (self.weight[labels].double() @ self._inverse).float()
        return vectors


def semantic_deviation(states: Tensor, basis: Tensor) -> Tensor:
    """1 - cos between states [..., R, d], after the final norm, and their labels' basis [R, d]. Gives [..., R]."""
    return 1 - torch.cosine_similarity(states, basis, dim=-1)


def shift(before: Tensor, after: Tensor) -> Tensor:
    """||h_k - h_{k-1}|| for each token: [..., R] from two tensors [..., R, d]."""
    lengths: Tensor = torch.linalg.vector_norm(after - before, dim=-1)
    return lengths


def similarity(before: Tensor, after: Tensor) -> Tensor:
    """cos(h_{k-1}, h_k) for each token: [..., R] from two tensors [..., R, d]. A block that does nothing has 1."""
    return torch.cosine_similarity(before, after, dim=-1)


def difference_gain(before: Tensor, after: Tensor) -> Measurement:
    """d_{k-1} - d_k, from the deviations of each row before and after a block, both [N]."""
    differences = before - after
    return Measurement(float(differences.mean()), standard_error(differences))


def log_gain(before: Tensor, after: Tensor) -> Measurement:
    """-ln(d_k / d_{k-1}) of the mean deviations. The standard error is that of the linearised ratio over paired rows.

    The value is None where a mean is 0 or less, because it has no logarithm.
    """
    one, other = float(before.mean()), float(after.mean())
    if one <= 0 or other <= 0:
        return Measurement(None)
    return Measurement(math.log(one / other), standard_error(before / one - after / other))


def cut_at_largest(gains: Sequence[float | None]) -> int:
    """How many of the lowest blocks to freeze: all up to the first one with the largest gain.

    The last block is never frozen, so that at least one trains [inferred]. Raises `ValueError` when no block has a
    gain.
    """
    known = [(gain, -index) for index, gain in enumerate(gains) if gain is not None]
    if not known:
        raise ValueError("no block has a gain")
    return min(1 - max(known)[1], len(gains) - 1)
