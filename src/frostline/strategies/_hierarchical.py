"""Hierarchical freezing (methods.md 2): low blocks are frozen, middle ones train in part, high ones in full."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from frostline.core.errors import ConfigError
from frostline.core.settings import Options
from frostline.plan import BlockMode, Forward, Frozen, Full, Partial, Residual
from frostline.strategies._plans import plan_of
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Size

Partly = Literal["attention", "feed_forward", "norms_and_biases", "rows", "lr"]
_BELONGS_TO = {"row_share": "rows", "rows_seed": "rows", "lr_scale": "lr"}


class HierarchicalOptions(Options):
    """The tiers, what trains in the middle tier, and changes of the forward pass (none by default).

    Attributes:
        low: size of the frozen tier, as a share of the blocks or as their number.
        middle: size of the partly trained tier. The other blocks are the high tier.
        partly: what trains in a middle block: `attention`, `feed_forward` or `norms_and_biases`; `rows`: a share of
            each matrix's rows; `lr`: everything, at a lower learning rate.
        row_share: with `partly: rows`, the share of the rows.
        rows_seed: with `partly: rows`, the seed that draws the rows; None is the run's seed.
        lr_scale: with `partly: lr`, the factor of the run's learning rate.
        loss_weights: lambda_l of the layered loss, one number for each block; None is the ordinary loss.
        alpha: weight of the residual interaction h_l = block_l(h_(l-1)) + alpha h_(l-span); 0 is the ordinary model.
        span: how many blocks the residual interaction reaches back (the paper's k).
    """

    low: Size = 1 / 3
    middle: Size = 1 / 3
    partly: Partly = "attention"
    row_share: float = Field(0.5, gt=0, lt=1)
    rows_seed: NonNegativeInt | None = None
    lr_scale: float = Field(0.1, gt=0)
    loss_weights: tuple[float, ...] | None = None
    alpha: float = 0.0
    span: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _of_the_chosen_form(self) -> HierarchicalOptions:
        for name, form in _BELONGS_TO.items():
            if name in self.model_fields_set and self.partly != form:
                raise ValueError(
                    f"{name} has no effect with partly: {self.partly}: use partly: {form}, or leave it out"
                )
        return self


def hierarchical(situation: Situation, options: HierarchicalOptions) -> Selection:
    """Three tiers: low blocks are frozen, middle ones train in part, high ones in full.

    Raises `ConfigError` when the low and the middle tier leave no block for the high one.
    """
    blocks = situation.blocks
    low, middle = _size(options.low, blocks), _size(options.middle, blocks)
    high = blocks - low - middle
    if high < 1:
        raise ConfigError(
            f"strategy 'hierarchical': low ({low}) and middle ({middle}) leave none of {blocks} blocks for the high "
            "tier: use smaller tiers"
        )
    modes = [Frozen()] * low + [_partly(situation, options)] * middle + [Full()] * high
    forward = Forward(loss_weights=options.loss_weights, residual=Residual(alpha=options.alpha, span=options.span))
    return fixed(plan_of(situation, modes, "hierarchical", forward))


def _size(size: float, blocks: int) -> int:
    return size if isinstance(size, int) else math.floor(size * blocks + 0.5)


def _partly(situation: Situation, options: HierarchicalOptions) -> BlockMode:
    if options.partly == "lr":
        return Full(lr_scale=options.lr_scale)
    if options.partly == "rows":
        seed = situation.seed if options.rows_seed is None else options.rows_seed
        return Partial(rows=options.row_share, rows_seed=seed)
    return Partial(train=options.partly)
