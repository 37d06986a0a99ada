"""SplitLoRA (methods.md 5): LoRA on every block, trained by a server and by clients that keep their own rows."""

from __future__ import annotations

import math

from pydantic import PositiveInt

from frostline.core.errors import ConfigError
from frostline.plan import Frozen, Lora, Plan, Split
from frostline.strategies._plans import task_head
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation


class SplitLoraOptions(Lora):
    """The options of LoRA, and how training is divided.

    Attributes:
        cut: how many of the lowest blocks the clients hold, with the embeddings; None is a quarter of the blocks.
        clients: how many clients there are. Each has its own share of the training rows.
        average_every: how many steps lie between two averages of the clients' matrices.
        listen: the address of this machine on which the server listens for its clients.
    """

    cut: PositiveInt | None = None
    clients: PositiveInt = 3
    average_every: PositiveInt = 100
    listen: str = "127.0.0.1"


def splitlora(situation: Situation, options: SplitLoraOptions) -> Selection:
    """LoRA on every block, and a task head. The clients train the lowest blocks, the server the others.

    Raises `ConfigError` when `cut` leaves no block for the server, and when `listen` is no address.
    """
    blocks = situation.blocks
    cut = max(1, math.floor(blocks / 4 + 0.5)) if options.cut is None else options.cut
    if cut >= blocks:
        raise ConfigError(
            f"strategy 'splitlora': cut: {cut} of {blocks} blocks leave none for the server: use at most {blocks - 1}"
        )
    lora = Lora.model_validate(options.model_dump(include=set(Lora.model_fields)))
    plan = Plan(strategy="splitlora", blocks=(lora,) * blocks, final_norm=Frozen(), head=task_head(situation))
    return fixed(plan, split=Split(cut, options.clients, options.average_every, listen=options.listen))
