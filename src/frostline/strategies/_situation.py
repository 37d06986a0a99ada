"""What a strategy knows when it chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import ConfigError
from frostline.cost import EvaluationWork, Speed, Workload
from frostline.signals import Probe
from frostline.strategies._budget import Budget

Measure = Callable[[Sequence[str] | None, int], Probe]
"""Names of signals (None: the default ones) and a number of rows -> the signals, measured on the task."""


@dataclass(frozen=True)
class Situation:
    """What a strategy knows when it chooses.

    Attributes:
        anatomy: the model's parts.
        seed: the run's seed.
        measure: measures signals of the model on its task; None without a task, or without weights.
        budget: how much time and memory training may use.
        workload: the work that the cost is predicted for.
        evaluation: the evaluation that has to stay within the budget's memory too; None: it is not counted.
        speed: how fast this machine does it; None where it was not measured.
        decided: what a planner must not change: settings of the workload, `steps`, and `untie`.
        steps: optimizer steps of the training; None where they are not known.
    """

    anatomy: Anatomy
    seed: int = 0
    measure: Measure | None = field(default=None, repr=False)
    budget: Budget = field(default_factory=Budget)
    workload: Workload = field(default_factory=Workload)
    evaluation: EvaluationWork | None = None
    speed: Speed | None = None
    decided: frozenset[str] = frozenset()
    steps: int | None = None

    @classmethod
    def of(cls, model: nn.Module, seed: int = 0, **others: Any) -> Situation:
        """The situation for a model, in memory or on the meta device. `others` are other fields."""
        return cls(find_anatomy(model), seed, **others)

    def within(self, share: float) -> Situation:
        """The same situation with another limit of time, a share of full fine-tuning's, which may be above 1."""
        return replace(self, budget=self.budget.model_copy(update={"time": share}), speed=None)

    @property
    def blocks(self) -> int:
        return len(self.anatomy.blocks)

    def known_steps(self, strategy: str) -> int:
        """The steps of the training. Raises `ConfigError`, for a strategy that needs them, where they are not known."""
        if self.steps is None:
            raise ConfigError(
                f"strategy '{strategy}' changes its plan at shares of the training: give the number of its steps "
                "(in Python: steps=...)"
            )
        return self.steps

    def probe(self, signals: Sequence[str] | None = None, rows: int = 256) -> Probe:
        """Signals of the model's blocks on `rows` rows of its task. Raises `ConfigError` without a task."""
        if self.measure is None:
            raise ConfigError("the strategy measures the model on rows of a task: give --task (in Python: data=...)")
        return self.measure(signals, rows)
