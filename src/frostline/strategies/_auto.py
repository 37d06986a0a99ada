"""`auto`: the semantic cut tells which blocks are worth training. The planner chooses among plans within a budget."""

from __future__ import annotations

from pydantic import NonNegativeInt

from frostline.core.errors import ConfigError
from frostline.strategies._candidates import Freedom
from frostline.strategies._planner import planned
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._semantic import Deviation
from frostline.strategies._situation import Situation


class AutoOptions(Deviation, Freedom):
    """The options of `semantic` and of the planner, and one more.

    Attributes:
        cut: how many of the lowest blocks are not worth training; None measures it.
    """

    cut: NonNegativeInt | None = None


def auto(situation: Situation, options: AutoOptions) -> Selection:
    """Train the blocks above the semantic cut. With a budget, the planner chooses what the budget allows."""
    cut = _cut(situation, options)
    given = options.model_fields_set & set(Freedom.model_fields)
    if not situation.budget.limits and given:
        raise ConfigError(
            f"strategy_options.{min(given)}: it says how to plan for a budget, and there is none: use --budget, or "
            "leave it out"
        )
    if not situation.budget.limits:
        return fixed(freeze_blocks(situation, set(range(cut)), "auto"))
    worths = [float(index >= cut) for index in range(situation.blocks)]
    return planned(situation, worths, options, "auto")


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
