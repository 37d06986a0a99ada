"""`auto`: the semantic cut says which blocks are worth training, and the planner what of that a budget buys."""

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
    """Those of `semantic` and of the planner.

    `cut`: how many of the lowest blocks are worth nothing; None measures it.
    """

    cut: NonNegativeInt | None = None


def auto(situation: Situation, options: AutoOptions) -> Selection:
    """The blocks above the semantic cut in full; with a budget, what of them it allows (`search`)."""
    cut = _cut(situation, options)
    if not situation.budget.limits:
        return fixed(freeze_blocks(situation, set(range(cut)), "auto"))
    worths = [float(index >= cut) for index in range(situation.blocks)]
    return planned(situation, worths, options, "auto")


def _cut(situation: Situation, options: AutoOptions) -> int:
    if options.cut is not None:
        if options.cut >= situation.blocks:
            raise ConfigError(f"strategy_options.cut: {options.cut} leaves none of {situation.blocks} blocks to train")
        return options.cut
    if situation.blocks < 2:
        return 0
    if situation.measure is None:
        raise ConfigError(
            "auto measures the model on rows of a task: give --task (in python: data=...), or its option cut, the "
            "number of low blocks that are not worth training"
        )
    probe = situation.probe(None if options.deviation is None else (options.deviation,), options.rows)
    return probe.cut(options.gain, options.deviation)
