"""What the plans of many strategies share: what becomes of embeddings, final norm and head."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from frostline.core.errors import PlanError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Forward, Frozen, Full, Plan
from frostline.strategies._situation import Situation


def freeze_blocks(situation: Situation, frozen: set[int], strategy: str) -> Plan:
    """Blocks in `frozen` and the embeddings frozen, the other blocks, the final norm and the head full.

    On a model with tied embeddings the head is the embedding's tensor, and stays frozen with it.
    """
    blocks = tuple(Frozen() if index in frozen else Full() for index in range(situation.blocks))
    head = Frozen() if situation.anatomy.tied else Full()
    return Plan(strategy=strategy, blocks=blocks, head=head)


def plan_of(situation: Situation, modes: Iterable[BlockMode], strategy: str, forward: Forward | None = None) -> Plan:
    """`modes` for the blocks; embeddings, final norm and head as `freeze_blocks` leaves them.

    Raises `UserError` when the modes, or what changes in the forward pass, make no plan.
    """
    around = dict(freeze_blocks(situation, set(), strategy))
    try:
        return Plan.model_validate({**around, "blocks": tuple(modes), "forward": forward or Forward()})
    except ValidationError as error:
        raise PlanError(f"strategy '{strategy}': {first_error(error)}") from None


def task_head(situation: Situation) -> Frozen | Full:
    """Full for a head that the task brought along (a classifier), frozen for a pretrained LM head."""
    return Frozen() if situation.anatomy.has_lm_head else Full()
