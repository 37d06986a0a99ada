"""A plan of a mode for each block, with the surroundings that every strategy of partly trained blocks gives them."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from frostline.core.errors import UserError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Forward, Plan
from frostline.strategies._base import Situation, freeze_blocks


def plan_of(situation: Situation, modes: Iterable[BlockMode], strategy: str, forward: Forward | None = None) -> Plan:
    """`modes` for the blocks; embeddings, final norm and head as `freeze_blocks` leaves them.

    Raises `UserError` when the modes, or what changes in the forward pass, make no plan.
    """
    around = dict(freeze_blocks(situation, set(), strategy))
    try:
        return Plan.model_validate({**around, "blocks": tuple(modes), "forward": forward or Forward()})
    except ValidationError as error:
        raise UserError(f"strategy '{strategy}': {first_error(error)}") from None
