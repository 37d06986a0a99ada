"""How many numbers FLORA keeps for a tensor: for the optimizer and the prediction.

Shapes: a matrix [n, m]; rank r; the projected side is n or m, the other one stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from frostline.plan import FloraOptions


def projected_side(shape: Sequence[int], options: FloraOptions) -> int | None:
    """The dimension of a tensor that FLORA projects: 0, 1, or None where it is not compressed."""
    if len(shape) != 2:
        return None
    rows, columns = shape
    side = int(rows >= columns) if options.side == "smaller" else int(rows < columns)
    return side if options.rank < shape[side] else None


def sum_numbers(shape: Sequence[int], options: FloraOptions) -> int:
    """Numbers of a tensor's gradient as it is accumulated."""
    side = projected_side(shape, options)
    return math.prod(shape) if side is None else options.rank * shape[1 - side]


def state_numbers(shape: Sequence[int], options: FloraOptions) -> int:
    """Numbers that are kept for a tensor between steps; where it is not compressed, as many as AdamW keeps."""
    if projected_side(shape, options) is None:
        return 2 * math.prod(shape)
    momentum = sum_numbers(shape, options) if options.beta1 else 0
    return momentum + (sum(shape) if options.second_moment == "factored" else 0)
