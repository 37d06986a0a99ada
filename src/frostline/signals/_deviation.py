"""How the states at one token move from block to block: pure functions over tensors.

N rows, R tokens that are read, V vocabulary, d hidden width
h_0 the embeddings' output, h_k the output of block k (counted from 1), L blocks
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from frostline.signals._measurement import Measurement, standard_error

_CHUNK = 8192
_SINGULAR = 1e-6  # what float32 weights cannot tell from 0, beside the largest


class SemanticBasis:
    """Where each label lies in latent space: s_y = e_y pinv(W)', for the head's weight W [V, d].

    It equals w_y (W'W)^-1, so that one d x d matrix is factorised and only rows of W that are asked for are used
    (methods.md, section 3). Where W'W is singular its pseudo-inverse takes the inverse's place, and the equation
    still holds.
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
    """1 - cos of states [..., R, d], which the final norm has normed, to their labels' basis [R, d]: [..., R]."""
    return 1 - torch.cosine_similarity(states, basis, dim=-1)


def shift(before: Tensor, after: Tensor) -> Tensor:
    """||h_k - h_{k-1}|| of each token: [..., R] from two of [..., R, d]."""
    lengths: Tensor = torch.linalg.vector_norm(after - before, dim=-1)
    return lengths


def similarity(before: Tensor, after: Tensor) -> Tensor:
    """cos(h_{k-1}, h_k) of each token: [..., R] from two of [..., R, d]. A block that does nothing has 1."""
    return torch.cosine_similarity(before, after, dim=-1)


def difference_gain(before: Tensor, after: Tensor) -> Measurement:
    """d_{k-1} - d_k from both deviations of each row, [N] and [N]."""
    differences = before - after
    return Measurement(float(differences.mean()), standard_error(differences))


def log_gain(before: Tensor, after: Tensor) -> Measurement:
    """-ln(d_k / d_{k-1}) of the mean deviations. The error is that of the linearised ratio, rows paired.

    None where a mean is not above 0, so that there is no logarithm.
    """
    one, other = float(before.mean()), float(after.mean())
    if one <= 0 or other <= 0:
        return Measurement(None)
    return Measurement(math.log(one / other), standard_error(before / one - after / other))


def cut_at_largest(gains: Sequence[float | None]) -> int:
    """How many blocks to freeze: those up to the one with the largest gain, the first of equals.

    The last block is never frozen, so that at least one trains (methods.md leaves this open). Raises `ValueError`
    when no block has a gain.
    """
    known = [(gain, -index) for index, gain in enumerate(gains) if gain is not None]
    if not known:
        raise ValueError("no block has a gain")
    return min(1 - max(known)[1], len(gains) - 1)
