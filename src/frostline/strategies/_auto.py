"""`auto`: with a budget, the planner spends it. Without one, the blocks above the semantic cut train."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, NonNegativeInt

from frostline.core.errors import ConfigError
from frostline.strategies._candidates import Freedom
from frostline.strategies._planner import planned
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._semantic import Deviation
from frostline.strategies._situation import Situation
from frostline.strategies._worth import learning_rate


class AutoOptions(Deviation, Freedom):
    """The options of `semantic` and of the planner, and more.

    Attributes:
        cut: how many of the lowest blocks are not worth training. By default none is left out where there is a budget;
            without a budget the cut is measured.
        trials: the share of the time budget that may be lost in trials; 0: a rule chooses, and nothing is tried.
        held_out: what judges trials: rows held out of the `train` split, or those of the `eval` split.
    """

    cut: NonNegativeInt | None = None
    trials: float = Field(0.25, ge=0, le=0.5)
    held_out: Literal["train", "eval"] = "train"


def auto(situation: Situation, options: AutoOptions) -> Selection:
    """With a budget, what the planner makes of it by the rule of `_worth`. Else the blocks above the semantic cut."""
    given = options.model_fields_set & {*Freedom.model_fields, "trials", "held_out"}
    if not situation.budget.limits and given:
        raise ConfigError(
            f"strategy_options.{min(given)}: it says how to plan for a budget, and there is none: use --budget, or "
            "leave it out"
        )
    if not situation.budget.limits:
        return fixed(freeze_blocks(situation, set(range(_cut(situation, options))), "auto"))
    if options.cut is not None:
        _cut(situation, options)  # raises where it leaves none to train
    spend = "steps" not in situation.decided
    selection = planned(situation, worths(situation, options), options, "auto", spend=spend)
    assert selection.choice is not None
    return replace(selection, choice=replace(selection.choice, learning_rate=learning_rate(situation.anatomy)))


def worths(situation: Situation, options: AutoOptions) -> list[float]:
    """What training each block is worth: nothing below a cut that is given, else the same for all."""
    return [float(index >= (options.cut or 0)) for index in range(situation.blocks)]


def _cut(situation: Situation, options: AutoOptions) -> int:
    if options.cut is not None:
        if options.cut >= situation.blocks:
            raise ConfigError(
                f"strategy_options.cut: {options.cut} of {situation.blocks} blocks leave none to train: use at most "
                f"{situation.blocks - 1}"
            )
        return options.cut
    if situation.blocks < 2:
        return 0
    if situation.measure is None:
        raise ConfigError(
            "strategy 'auto' measures the model on rows of a task: give --task (in Python: data=...), or the "
            "number of low blocks that need no training: --set cut=2 (in Python: options={'cut': 2})"
        )
    probe = situation.probe(None if options.deviation is None else (options.deviation,), options.rows)
    return probe.cut(options.gain, options.deviation)
