"""FLORA's options, and how many numbers it keeps for a tensor: what the optimizer and the prediction share.

Shapes: a matrix [n, m]; rank r; the projected side is n or m, the other one stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from frostline.core.settings import Options


class FloraOptions(Options):
    """Settings of the optimizer FLORA.

    Attributes:
        rank: numbers that are left of the projected side. A matrix whose projected side is no longer than this is
            not compressed.
        side: which side of a matrix is projected; `larger` keeps least, and is the noisier for it.
        kappa: steps until the momentum is carried over to another projection.
        beta1: share of the momentum that stays at each step; 0 goes without momentum and its state.
        second_moment: `factored` divides by row and column means of the squared gradient, `none` by nothing.
        decay_rate: step t takes the share t ** -decay_rate of the new squares into those means.
        clip_threshold: the largest root mean square of an update before the learning rate.
        scale_parameter: multiply the learning rate of a matrix by its root mean square, as Adafactor does.
        beta2: AdamW's, with `beta1`, for tensors that are not compressed.
        eps: AdamW's, for the same tensors.
    """

    rank: int = Field(16, gt=0)
    side: Literal["smaller", "larger"] = "smaller"
    kappa: int = Field(1000, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    second_moment: Literal["factored", "none"] = "factored"
    decay_rate: float = Field(0.8, gt=0)
    clip_threshold: float = Field(1.0, gt=0)
    scale_parameter: bool = False
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


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
    """Numbers that stay between steps for a tensor; those of AdamW where it is not compressed."""
    if projected_side(shape, options) is None:
        return 2 * math.prod(shape)
    momentum = sum_numbers(shape, options) if options.beta1 else 0
    return momentum + (sum(shape) if options.second_moment == "factored" else 0)
