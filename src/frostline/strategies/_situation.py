"""What a strategy may look at when it chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import ConfigError
from frostline.cost import Speed, Workload
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
            raise ConfigError("this strategy measures the model on rows of a task: give --task (in python: data=...)")
        return self.measure(signals, rows)
