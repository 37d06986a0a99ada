"""A few blocks at a time, others every few steps: LISA and BAdam (methods.md 5 and 10)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from frostline.core.errors import ConfigError
from frostline.core.seeding import derive_seed
from frostline.core.settings import Options
from frostline.plan import Frozen, Full, PartMode, Plan, Timetable
from frostline.strategies._plans import task_head
from frostline.strategies._selection import Selection
from frostline.strategies._situation import Situation

Draws = Literal["exactly", "each"]
Order = Literal["descending", "ascending", "random"]


class LisaOptions(Options):
    """The options of LISA.

    Attributes:
        gamma: how many blocks train at a time.
        every: optimizer steps between two draws (the paper's K).
        draw: `exactly` draws gamma blocks, as the authors' code does; `each` draws each of L blocks by itself, with
            probability gamma / L, as the paper has it.
        embeddings: whether the embeddings always train. They are large; without them a tied head is frozen too.
        head: whether the head always trains. The final norm always does.
    """

    gamma: PositiveInt = 2
    every: PositiveInt = 20
    draw: Draws = "exactly"
    embeddings: bool = True
    head: bool = True


def lisa(situation: Situation, options: LisaOptions) -> Selection:
    """LISA (Pan et al. 2024): embeddings and head always train, and a few blocks, which are drawn anew every K steps.

    The draws follow from the run's seed, so they are known before training. Raises `ConfigError` where there are fewer
    blocks than gamma, and for a head that cannot train without the embeddings.
    """
    blocks, tied = situation.blocks, situation.anatomy.tied
    if options.gamma > blocks:
        raise ConfigError(f"strategy 'lisa': gamma={options.gamma}, but the model has {blocks} blocks: use fewer")
    if tied and not options.embeddings and "head" in options.model_fields_set and options.head:
        raise ConfigError("strategy 'lisa': head=true: it is the tensor of the embeddings here: use embeddings=true")
    head = options.head and (options.embeddings or not tied)

    def drawn(period: int) -> set[int]:
        draw = random.Random(derive_seed(situation.seed, "strategy", "lisa", period))
        if options.draw == "exactly":
            return set(draw.sample(range(blocks), options.gamma))
        return {block for block in range(blocks) if draw.random() < options.gamma / blocks}

    def plans() -> Iterator[tuple[int, Plan]]:
        for period in count():
            plan = _training(drawn(period), situation, "lisa", _mode(options.embeddings), Full(), _mode(head))
            yield period * options.every, plan

    return Selection(Timetable(plans, situation.steps))


class BAdamOptions(Options):
    """The options of BAdam.

    Attributes:
        every: optimizer steps that each block trains.
        order: `descending` begins with the last block, `ascending` with the first; `random` draws a new order for each
            round; or the numbers of the blocks, in the order in which they train.
        final_norm: whether the final norm always trains.
        head: whether the head always trains; None: a new head of the task does, a pretrained one does not.
    """

    every: PositiveInt = 50
    order: Order | tuple[NonNegativeInt, ...] = Field("descending", union_mode="left_to_right")
    final_norm: bool = False
    head: bool | None = None


def badam(situation: Situation, options: BAdamOptions) -> Selection:
    """BAdam (Luo et al. 2024): one block at a time. The optimizer's state begins anew at each switch.

    Raises `ConfigError` for a block that the model does not have, and for a tied head, which cannot train.
    """
    blocks, order = situation.blocks, options.order
    if isinstance(order, tuple) and not (order and all(block < blocks for block in order)):
        raise ConfigError(f"strategy 'badam': order: use block numbers from 0 to {blocks - 1}, at least one")
    if options.head and situation.anatomy.tied:
        raise ConfigError("strategy 'badam': head=true: it is the tensor of the embeddings here: leave it out")
    head = task_head(situation) if options.head is None else _mode(options.head)

    def in_round(number: int) -> list[int]:
        if isinstance(order, tuple):
            return list(order)
        found = list(range(blocks))
        if order == "random":
            random.Random(derive_seed(situation.seed, "strategy", "badam", number)).shuffle(found)
        return found[::-1] if order == "descending" else found

    def plans() -> Iterator[tuple[int, Plan]]:
        turns = (block for number in count() for block in in_round(number))
        for turn, block in enumerate(turns):
            plan = _training({block}, situation, "badam", Frozen(), _mode(options.final_norm), head)
            yield turn * options.every, plan

    return Selection(Timetable(plans, situation.steps))


def _training(
    trained: set[int], situation: Situation, strategy: str, embeddings: PartMode, norm: PartMode, head: PartMode
) -> Plan:
    blocks = tuple(Full() if index in trained else Frozen() for index in range(situation.blocks))
    return Plan(strategy=strategy, embeddings=embeddings, blocks=blocks, final_norm=norm, head=head)


def _mode(trains: bool) -> PartMode:
    return Full() if trains else Frozen()
