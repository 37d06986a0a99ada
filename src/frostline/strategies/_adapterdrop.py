"""AdapterDrop (methods.md 10): no adapters in the lowest blocks, or in a number of them that is drawn for each pass."""

from __future__ import annotations

from pydantic import NonNegativeInt, model_validator

from frostline.core.settings import Options
from frostline.plan import AdapterDrop, Forward, Frozen, Full
from frostline.strategies._plans import how_many, plan_of
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import Size


class AdapterDropOptions(Options):
    """The options of `adapterdrop`.

    Attributes:
        robust: draw the number of blocks without adapters anew for each pass of the training.
        dropped: how many of the lowest blocks have no adapters, as a share of the blocks or as their number; with
            `robust`, in evaluation alone. None is five of twelve blocks, and with `robust` none.
        seed: with `robust`, of the draws; None is the run's seed.
    """

    robust: bool = False
    dropped: Size | None = None
    seed: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _of_the_robust_form(self) -> AdapterDropOptions:
        if self.seed is not None and not self.robust:
            raise ValueError("seed: nothing is drawn without robust: use robust: true, or leave seed out")
        return self


def adapterdrop(situation: Situation, options: AdapterDropOptions) -> Selection:
    """AdapterDrop (Ruckle et al. 2021): the adapters of the lowest blocks are left out, always or at random.

    The plan trains whole blocks: the addition in the strategy's name puts adapters in their places.

    Raises `ConfigError` when no block would have an adapter.
    """
    usual = 0 if options.robust else 5 / 12
    dropped = how_many(usual if options.dropped is None else options.dropped, situation, "adapterdrop", "dropped")
    forward, frozen = Forward(), dropped
    if options.robust:
        seed = situation.seed if options.seed is None else options.seed
        forward, frozen = Forward(adapterdrop=AdapterDrop(robust=True, evaluate=dropped, seed=seed)), 0
    modes = [Frozen() if index < frozen else Full() for index in range(situation.blocks)]
    return fixed(plan_of(situation, modes, "adapterdrop", forward))
