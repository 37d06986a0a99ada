"""What the plans of many strategies share: the modes of embeddings, final norm and head."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import ValidationError

from frostline.core.errors import ConfigError, PlanError
from frostline.core.settings import first_error
from frostline.plan import BlockMode, Forward, Frozen, Full, Plan
from frostline.strategies._situation import Situation


def freeze_blocks(situation: Situation, frozen: set[int], strategy: str) -> Plan:
    """A plan that freezes the embeddings and the blocks in `frozen`. Other blocks, final norm and head train.

    In a model with tied embeddings, the head is the embedding's tensor, so it is frozen too.
    """
    blocks = tuple(Frozen() if index in frozen else Full() for index in range(situation.blocks))
    head = Frozen() if situation.anatomy.tied else Full()
    return Plan(strategy=strategy, blocks=blocks, head=head)


def plan_of(situation: Situation, modes: Iterable[BlockMode], strategy: str, forward: Forward | None = None) -> Plan:
    """A plan with `modes` for the blocks. Embeddings, final norm and head are those of `freeze_blocks`.

    Args:
        situation: the model.
        modes: one for each block.
        strategy: the strategy's name.
        forward: changes of the forward pass and of the loss.

    Raises `PlanError` when they do not make a valid plan.
    """
    around = dict(freeze_blocks(situation, set(), strategy))
    try:
        return Plan.model_validate({**around, "blocks": tuple(modes), "forward": forward or Forward()})
    except ValidationError as error:
        raise PlanError(f"strategy '{strategy}': {first_error(error)}") from None


def decision_steps(steps: int, decisions: int) -> list[int]:
    """The steps at which a schedule decides, at equal distances, without the ends. Of a short training there are fewer.

    Args:
        steps: of the training.
        decisions: their number.
    """
    return sorted({max(1, round(steps * number / (decisions + 1))) for number in range(1, decisions + 1)})


def task_head(situation: Situation) -> Frozen | Full:
    """The mode of the head: full for a new head of the task (a classifier), frozen for a pretrained LM head."""
    return Frozen() if situation.anatomy.has_lm_head else Full()


def how_many(size: float, situation: Situation, strategy: str, option: str) -> int:
    """How many of the lowest blocks a `Size` is: floor(share L + 0.5), or the number itself.

    Args:
        size: a share of the blocks, below 1, or their number.
        situation: the model.
        strategy: the strategy's name, for messages.
        option: the name of the option that has the size.

    Raises `ConfigError` when no block would be left above them.
    """
    count = math.floor(size * situation.blocks + 0.5) if 0 < size < 1 else int(size)
    if count >= situation.blocks:
        raise ConfigError(
            f"strategy '{strategy}': {option}: {count} of {situation.blocks} blocks leave none that trains: use at "
            f"most {situation.blocks - 1}"
        )
    return count
