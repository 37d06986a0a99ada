"""How far two float32 computations of the same thing may lie apart, on any CPU.

A CPU sums in the order that suits its vector units. Two ways to compute one number then agree to rounding only, and
how far that reaches follows from the arithmetic, not from the CPU at hand:

- An operation errs by at most `ROUNDOFF` of its result, by 0.4 of that in the root mean square. The errors of n
  operations are as good as independent: they add to 0.4 sqrt(n), two such computations differ by 0.6 sqrt(n), and
  4 sqrt(n) is seven standard deviations (Higham and Mary, A new approach to probabilistic rounding error analysis,
  SIAM J. Sci. Comput. 41(5), 2019).
- SGD passes the error of a gradient on, times the learning rate.
- AdamW divides by sqrt(v). Where a gradient is rounding alone (that of a bias of keys is 0 in exact arithmetic), the
  weight takes whole steps of the learning rate, up or down by chance. So weights are compared under SGD, or under
  AdamW with an epsilon that is not small beside the gradients g: it passes errors on 2 (1 + g / epsilon) times as
  strongly, relative to what it moves.

The same operations in the same order in one process give the same bits on every CPU: there `torch.equal` is right.
(Memory has to begin alike too: MKL sums one token's product in another order where a weight that is mapped from a file
begins at 8 bytes and not at 16.)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from torch import Tensor

ROUNDOFF = 2.0**-24
"""The largest relative error of one float32 operation."""


def rounding(operations: int, size: float | Tensor = 1.0) -> float:
    """How far two results of as many `operations` may lie apart that pass through numbers of `size`, or as these."""
    if isinstance(size, Tensor):
        size = float(size.detach().abs().max())
    return 4 * sqrt(operations) * ROUNDOFF * size


FORWARD = 1200
"""Operations on the longest way through a tiny model (width 32, feed-forward 64, 128 tokens, four blocks): 250 in a
block (products of 32, 8, 16, 32, 32 and 64 terms, two norms), 160 in the head and its softmax, a mean."""

LOSS = rounding(FORWARD)
"""Two losses of a tiny model, relative to the loss: 8e-6."""

GRADIENT = rounding(3 * FORWARD)
"""Two gradients of a tiny model, relative to their norm: 1.4e-5. Backward is as much as forward, twice."""


def outputs(expected: Tensor) -> float:
    """How far the outputs of a tiny model may lie from those that are `expected`: 8e-6 of the largest."""
    return rounding(FORWARD, expected)


def after_sgd(rate: float, steps: int, norm: float = 1.0) -> float:
    """How far weights may lie apart after SGD.

    Args:
        rate: the largest learning rate.
        steps: how many steps were made.
        norm: the largest norm of a step's gradients together; `max_grad_norm` where that clips.
    """
    return rate * steps * GRADIENT * norm + rounding(steps)


def assert_same_steps(
    start: Mapping[str, Tensor],
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    steps: int,
    amplified: float = 1.0,
) -> None:
    """Weights that two computations of the same steps of SGD made of `start` differ by rounding alone.

    Steps in unlike directions add to `sqrt(steps)` times less than their lengths do. A tensor that moves by less than
    a hundredth of the farthest one may move by differences of larger numbers, and is held to that hundredth.

    Args:
        start: the weights before, by name.
        one: the weights after, computed in one way.
        other: computed in another way.
        steps: how many steps were made.
        amplified: how much more strongly than SGD the optimizer passes the errors of gradients on.
    """
    assert one.keys() == other.keys()
    moved = {name: float((tensor - start[name]).norm()) for name, tensor in one.items()}
    farthest = max(moved.values())
    assert farthest > 0
    for name, tensor in one.items():
        of_steps = amplified * sqrt(steps) * GRADIENT * max(moved[name], farthest / 100)
        of_weights = rounding(steps, float(tensor.norm()))
        away = float((other[name] - tensor).norm())
        assert away <= of_steps + of_weights, f"{name} is {away:.2g} away, and moved by {moved[name]:.2g}"
