"""LayerDrop (methods.md 10): each pass of the training skips some of the blocks that train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from frostline.core.settings import Options
from frostline.plan import Forward, Frozen, Full, LayerDrop, Plan
from frostline.strategies._plans import how_many, plan_of
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Size


class LayerDropOptions(Options):
    """The options of `layerdrop`.

    Attributes:
        p: the probability with which each block that trains is skipped in a pass of the training.
        evaluate: which of these blocks run outside training: `all`, or `every_other` one, from the lowest.
        frozen: how many of the lowest blocks are frozen, as a share of the blocks or as their number. These always run.
        seed: of the draws; None is the run's seed.
    """

    p: float = Field(0.2, gt=0, lt=1)
    evaluate: Literal["all", "every_other"] = "all"
    frozen: Size = 0
    seed: NonNegativeInt | None = None


def layerdrop(situation: Situation, options: LayerDropOptions) -> Selection:
    """LayerDrop (Fan, Grave and Joulin 2020): everything trains, but each pass of the training skips some blocks.

    With a frozen bottom, embeddings, final norm and head are those of `botP`.

    Raises `ConfigError` when every block would be frozen.
    """
    frozen = how_many(options.frozen, situation, "layerdrop", "frozen")
    seed = situation.seed if options.seed is None else options.seed
    forward = Forward(layerdrop=LayerDrop(p=options.p, evaluate=options.evaluate, seed=seed))
    if not frozen:
        blocks = (Full(),) * situation.blocks
        return fixed(Plan(strategy="layerdrop", embeddings=Full(), blocks=blocks, forward=forward))
    modes = [Frozen() if index < frozen else Full() for index in range(situation.blocks)]
    return fixed(plan_of(situation, modes, "layerdrop", forward))
