"""FLORA's options, and the arguments of any optimizer (`optim_args`), as pure data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from frostline.core.settings import Options, first_error


class FloraOptions(Options):
    """Settings of the optimizer FLORA.

    Attributes:
        rank: numbers that are left of the projected side. A matrix whose projected side is no longer than this is
            not compressed.
        side: which side of a matrix is projected; `larger` keeps least, and is the noisier for it.
        kappa: steps until the momentum is carried over to another projection.
        beta1: share of the momentum that stays at each step; 0: no momentum, and no state for it.
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


OptimArgs = FloraOptions | dict[str, Any]
"""Arguments of an optimizer: FLORA's, or names and values that transformers passes on."""


def read_optim_args(optim: str, value: Any) -> OptimArgs | None:
    """The arguments of the optimizer `optim`: a mapping, or text such as `rank=16,kappa=1000`.

    Raises `ValueError` for text of another form, and for what is not an option of FLORA.
    """
    given: OptimArgs | None
    if value is None or isinstance(value, FloraOptions):
        given = value
    elif isinstance(value, str):
        given = _parse(value)
    elif isinstance(value, Mapping):
        given = dict(value)
    else:
        raise ValueError("it should be a mapping, or text such as rank=16,kappa=1000")
    if optim == "flora" and isinstance(given, dict):
        try:
            return FloraOptions.model_validate(given)
        except ValidationError as error:
            raise ValueError(first_error(error)) from None
    if optim != "flora" and isinstance(given, FloraOptions):
        raise ValueError(f"these are options of flora, and optim is {optim}: leave them out, or use optim=flora")
    return given


def _parse(text: str) -> dict[str, Any]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ValueError(f"'{text}' is not text such as rank=16,kappa=1000")
    return {name.strip(): value.strip() for name, _, value in pairs}
