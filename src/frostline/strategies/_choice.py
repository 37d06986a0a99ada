"""What the planner chose: the plan, the run's settings that belong to it, and what it was chosen over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from frostline.core.sizes import size_text
from frostline.cost import Prediction, Workload
from frostline.plan import Plan
from frostline.strategies._limits import Limit

AboveMode = Literal["full", "lora", "head", "given"]
GIVEN: Final = "given"
"""The mode of a plan that a strategy gave, for which only the settings of the run were chosen."""


@dataclass(frozen=True)
class Option:
    """One plan with its settings, and what it is predicted to cost.

    Attributes:
        mode: what training does to the blocks from the plan's boundary on; `head` where none of them trains; `given`
            where a strategy gave the plan.
        plan: what trains; under a schedule, at first.
        workload: the work with the chosen batch, accumulation, activation checkpointing and activation cache.
        expected_gain: a share of the gain of training every block in full, which is 1; None for a plan that is given.
        prediction: the predicted cost.
        memory_share: peak memory, as a share of full fine-tuning of the workload as it was asked for.
        time_share: time, as a share of the same.
    """

    mode: AboveMode
    plan: Plan
    workload: Workload
    expected_gain: float | None
    prediction: Prediction
    memory_share: float
    time_share: float

    @property
    def short(self) -> str:
        """A name for it, without the settings: `full-12`, `full-12-untied`, `lora-0`."""
        return f"{self.mode}-{self.plan.boundary}{'-untied' * self.plan.untie}"

    @property
    def what(self) -> str:
        """What trains, and how, as text."""
        work, last = self.workload, len(self.plan.blocks) - 1
        boundary = self.plan.boundary
        blocks = f"block {last}" if boundary == last else f"blocks {boundary}-{last}"
        if self.plan.embeddings.mode == "full":
            blocks = "everything"
        parts = [_TRAINS[self.mode].format(blocks=blocks, strategy=self.plan.strategy)]
        accumulated = f" x {work.gradient_accumulation_steps}" if work.gradient_accumulation_steps > 1 else ""
        parts.append(f"batches of {work.per_device_train_batch_size}{accumulated}")
        parts[1:1] = ["the head with weights of its own"] * (self.plan.untie and self.mode in ("full", "lora"))
        parts += ["activation checkpointing"] * work.activation_checkpointing
        parts += ["activation cache"] * work.activation_cache
        return ", ".join(parts)

    @property
    def line(self) -> str:
        """What trains, what it is expected to gain, and what it needs, as text."""
        found = self.prediction
        needs = [
            f"{self.workload.num_train_epochs:.2g} passes over the rows",
            f"{size_text(found.peak_memory_bytes)} ({self.memory_share:.2f} of full fine-tuning)",
            f"{self.time_share:.2f} of its time",
            *([f"{size_text(found.disk_bytes)} on disk"] if found.disk_bytes else []),
        ]
        gain = [] if self.expected_gain is None else [f"gain {self.expected_gain:.2f}"]
        return f"{self.what}: {', '.join([*gain, *needs])}"

    def document(self) -> dict[str, Any]:
        """Plain data: the settings and their predicted cost."""
        work = self.workload
        return {
            "boundary": self.plan.boundary,
            "mode": self.mode,
            "untie": self.plan.untie,
            "num_train_epochs": round(self.workload.num_train_epochs, 4),
            "per_device_train_batch_size": work.per_device_train_batch_size,
            "gradient_accumulation_steps": work.gradient_accumulation_steps,
            "activation_checkpointing": work.activation_checkpointing,
            "activation_cache": work.activation_cache,
            "expected_gain": None if self.expected_gain is None else round(self.expected_gain, 6),
            "memory_share": round(self.memory_share, 6),
            "time_share": round(self.time_share, 6),
            "predicted": self.prediction.document(),
        }


@dataclass(frozen=True)
class ConstraintCost:
    """What one limit of the budget costs in gain.

    Attributes:
        limit: the limit.
        used: what the chosen plan needs of the resource, in bytes, seconds or operations.
        gain: how much more the best plan without this limit gains.
        instead: that plan.
    """

    limit: Limit
    used: float
    gain: float
    instead: Option

    @property
    def line(self) -> str:
        """The cost as text."""
        used = f"{self.limit}: the plan uses {self.limit.text(self.used)}"
        if self.gain <= 0:
            return f"{used}; a larger limit would not change it"
        return f"{used}; without this limit the gain would be {self.gain:.2f} higher: {self.instead.what}"

    def document(self) -> dict[str, Any]:
        """Plain data; `limit` and `used` are in bytes, or in seconds (operations without a speed)."""
        return {
            "constraint": self.limit.resource,
            "asked": self.limit.asked,
            "limit": self.limit.amount,
            "used": self.used,
            "cost": round(self.gain, 6),
            "without": self.instead.document(),
        }


@dataclass(frozen=True)
class Choice(Option):
    """The option with the largest expected gain within a budget.

    Attributes:
        runner_up: the best option with another mode, activation checkpointing or activation cache; None where none
            fits.
        constraints: what each limit of the budget costs.
        instead: what would be chosen with another budget: pairs of its name and the option; None where none fits.
        learning_rate: the learning rate to begin with, where the strategy chooses one.
    """

    runner_up: Option | None = None
    constraints: tuple[ConstraintCost, ...] = ()
    instead: tuple[tuple[str, Option | None], ...] = ()
    learning_rate: float | None = None

    def lines(self) -> list[tuple[str, str]]:
        """The choice as text: pairs of a label and a line."""
        runner_up = "no other mode or setting fits" if self.runner_up is None else self.runner_up.line
        costs = [("constraint", cost.line) for cost in self.constraints]
        others = [(f"with {name}", _changed(self, option)) for name, option in self.instead]
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        return [("chosen", self.line + rate), ("runner-up", runner_up), *costs, *others]

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **super().document(),
            "runner_up": None if self.runner_up is None else self.runner_up.document(),
            "constraints": [cost.document() for cost in self.constraints],
            "instead": {name: option and option.document() for name, option in self.instead},
            **({} if self.learning_rate is None else {"learning_rate": self.learning_rate}),
        }


def _changed(chosen: Option, option: Option | None) -> str:
    if option is None:
        return "no plan fits"
    return "the same plan" if option.what == chosen.what else option.line


_TRAINS = {"full": "{blocks} in full", "lora": "{blocks} with LoRA", "head": "the head alone", "given": "{strategy}"}
