"""Which optimizer trains, and its options, as pure data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from frostline.core.settings import Options

Optimizer = Literal["adamw", "sgd", "flora"]


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


def check_optimizer(optimizer: Optimizer, options: FloraOptions | None) -> None:
    """Raise `ValueError` for options of an optimizer that has none."""
    if options is not None and optimizer != "flora":
        raise ValueError(f"optimizer_options are those of flora, and optimizer is {optimizer}: leave them out")
