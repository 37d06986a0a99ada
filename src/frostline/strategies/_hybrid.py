"""HLPT and H2LPT (methods.md 4): gated LoRA in the low blocks, gated prefixes in the high ones."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import field_validator

from frostline.core.errors import ConfigError
from frostline.core.settings import Options
from frostline.plan import BlockMode, Frozen, Lora, Plan, Prefix
from frostline.strategies._plans import task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Size

LORA = {"targets": "down", "r": 8, "alpha": 16.0, "dropout": 0.0, "gate": True}
PREFIX = {"length": 20, "gate": "prefix"}


class HybridOptions(Options):
    """The tiers of `hlpt` and `h2lpt`, and what they add.

    Attributes:
        low: size of the low tier, as a share of the blocks or as their number.
        high: size of the high tier, as a share of the blocks or as their number.
        kept: for `h2lpt`, which half of each tier trains: `outer` (the lower half of the low tier and the upper half of
            the high tier), `inner` (the other two halves), `lower` or `upper` (that half of both tiers).
        swapped: put prefixes in the low tier and LoRA in the high one.
        lora: options of the LoRA; by default on the feed-forward's down projection, gated, r 8, alpha 16 (scale 2).
        prefix: options of the prefix; by default 20 tokens, gated.
    """

    low: Size = 3 / 4
    high: Size = 1 / 4
    kept: Literal["outer", "inner", "lower", "upper"] = "outer"
    swapped: bool = False
    lora: Lora = Lora.model_validate(LORA)
    prefix: Prefix = Prefix.model_validate(PREFIX)

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: Any) -> Any:
        return {**LORA, **value} if isinstance(value, dict) else value

    @field_validator("prefix", mode="before")
    @classmethod
    def _prefix(cls, value: Any) -> Any:
        return {**PREFIX, **value} if isinstance(value, dict) else value


def hlpt(situation: Situation, options: HybridOptions) -> Selection:
    """LoRA in the low tier, prefixes in the high one. Blocks between the tiers stay frozen.

    Raises `ConfigError` when the tiers have more blocks than the model, or none.
    """
    if "kept" in options.model_fields_set:
        raise ConfigError(
            "strategy_options of 'hlpt': kept: hlpt trains both tiers whole: use h2lpt, or leave kept out"
        )
    low, high = _tiers(situation, options, "hlpt")
    return fixed(_plan(situation, options, _name("hlpt", options), low, high))


def h2lpt(situation: Situation, options: HybridOptions) -> Selection:
    """HLPT on half of each tier. `kept` chooses the halves, by default those at the model's ends.

    Halves are rounded up. GPT-J's 28 blocks get 12 and 4, as in the paper.
    """
    low, high = _tiers(situation, options, "h2lpt")
    halves = (12, 4) if _as_published(situation, options) else (_half(len(low)), _half(len(high)))
    from_low = low[: halves[0]] if options.kept in ("outer", "lower") else low[len(low) - halves[0] :]
    from_high = high[: halves[1]] if options.kept in ("inner", "lower") else high[len(high) - halves[1] :]
    return fixed(_plan(situation, options, _name("h2lpt", options), from_low, from_high))


def _tiers(situation: Situation, options: HybridOptions, name: str) -> tuple[range, range]:
    blocks = situation.blocks
    # A remainder of 0.5 goes to the high tier, so that 3/4 and 1/4 add up to all blocks of any model.
    low = options.low if isinstance(options.low, int) else math.ceil(options.low * blocks - 0.5)
    high = options.high if isinstance(options.high, int) else math.floor(options.high * blocks + 0.5)
    if low + high > blocks or low + high == 0:
        raise ConfigError(
            f"strategy '{name}': tiers of {low} and {high} blocks do not fit a model of {blocks} blocks: set low and "
            f"high to 1 to {blocks} blocks together"
        )
    return range(low), range(blocks - high, blocks)


def _plan(situation: Situation, options: HybridOptions, name: str, low: range, high: range) -> Plan:
    below, above = (options.prefix, options.lora) if options.swapped else (options.lora, options.prefix)
    modes: list[BlockMode] = [Frozen()] * situation.blocks
    for tier, mode in ((low, below), (high, above)):
        modes[tier.start : tier.stop] = [mode] * len(tier)
    return Plan(strategy=name, blocks=tuple(modes), final_norm=Frozen(), head=task_head(situation))


def _name(stem: str, options: HybridOptions) -> str:
    counted = isinstance(options.low, int) and isinstance(options.high, int)
    return f"{stem}({options.low},{options.high})" if counted else stem


def _as_published(situation: Situation, options: HybridOptions) -> bool:
    whole = not {"low", "high"} & options.model_fields_set
    return whole and situation.anatomy.model_type == "gptj" and situation.blocks == 28


def _half(count: int) -> int:
    return (count + 1) // 2
