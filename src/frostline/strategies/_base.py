"""What a strategy is: a function from a situation and its options to a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import nn

from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import UserError
from frostline.core.settings import Options
from frostline.cost import Speed, Workload
from frostline.plan import FixedSchedule, Frozen, Full, Plan, Schedule
from frostline.signals import Probe
from frostline.strategies._budget import Budget

Measure = Callable[[Sequence[str] | None, int], Probe]
"""Signals by name (None: those of a forward pass) and a number of rows -> the model as measured on its task."""


@dataclass(frozen=True)
class Situation:
    """What a strategy may look at when it chooses.

    `measure` measures the model on its task; None where there is no task, or no weights. `budget` is what training
    may take, `workload` the work that it is counted for, and `speed` what the machine makes of it. `decided` names what
    of the workload a planner has to leave as it is: `batch`, `checkpointing`, `activation_cache`.
    """

    anatomy: Anatomy
    seed: int = 0
    measure: Measure | None = field(default=None, repr=False)
    budget: Budget = field(default_factory=Budget)
    workload: Workload = field(default_factory=Workload)
    speed: Speed | None = None
    decided: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, seed: int = 0, **others: Any) -> Situation:
        """The situation of a model that is in memory (or on the meta device)."""
        return cls(find_anatomy(model), seed, **others)

    @property
    def blocks(self) -> int:
        return len(self.anatomy.blocks)

    def probe(self, signals: Sequence[str] | None = None, rows: int = 256) -> Probe:
        """Signals of the model's blocks on `rows` rows of its task. Raises `UserError` when there is none."""
        if self.measure is None:
            raise UserError("this strategy measures the model on rows of a task: give --task (in python: data=...)")
        return self.measure(signals, rows)


def _a_size(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (value >= 0 and value == int(value))):
        raise ValueError("give a share of the blocks, above 0 and below 1, or a number of blocks")
    return value if 0 < value < 1 else int(value)


Size = Annotated[float | int, BeforeValidator(_a_size)]
"""A share of the blocks (below 1), or a number of blocks."""


class NoOptions(Options):
    """A strategy that has no options."""


class Percent(Options):
    """The number after a strategy's name: how many percent of the blocks are frozen."""

    percent: int


Choose = Callable[[Situation, Any], Schedule]


@dataclass(frozen=True)
class Strategy:
    """One entry of the table of strategies.

    `choose(situation, options)` gives the schedule. `options` is what a user may set, and their defaults; where it
    is a `Percent`, a number of `percents` follows the name: any of a range such as ``range(1, 100)``, or some.
    `counts` names options that may follow it as numbers in brackets, `hlpt(24,8)`. `read` reads the options in another
    way than by their type. `plans`: it takes a budget into account.
    """

    summary: str
    choose: Choose
    options: type[Options] = NoOptions
    percents: range | tuple[int, ...] = ()
    plans: bool = False
    counts: tuple[str, ...] = ()
    read: Callable[[Any, str], Any] | None = None


def fixed(plan: Plan) -> Schedule:
    """The schedule that keeps one plan."""
    return FixedSchedule(plan)


def freeze_blocks(situation: Situation, frozen: set[int], strategy: str) -> Plan:
    """Blocks in `frozen` and the embeddings frozen, the other blocks, the final norm and the head full.

    On a model with tied embeddings the head is the embedding's tensor, and stays frozen with it.
    """
    blocks = tuple(Frozen() if index in frozen else Full() for index in range(situation.blocks))
    head = Frozen() if situation.anatomy.tied else Full()
    return Plan(strategy=strategy, blocks=blocks, head=head)


def task_head(situation: Situation) -> Frozen | Full:
    """Full for a head that the task brought along (a classifier), frozen for a pretrained LM head."""
    return Frozen() if situation.anatomy.has_lm_head else Full()
