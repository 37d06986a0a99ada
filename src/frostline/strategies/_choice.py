"""What the planner chose: the plan, the run's settings that belong to it, and what it was chosen over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frostline.core.sizes import size_text
from frostline.cost import Prediction, Workload
from frostline.plan import Plan
from frostline.strategies._limits import Limit

Mode = Literal["full", "lora", "head"]


@dataclass(frozen=True)
class Option:
    """One way to spend a budget.

    Attributes:
        mode: how the blocks from the plan's boundary on train; `head` where none does.
        workload: the work as this way does it: batch, accumulation, checkpointing and activation cache are chosen.
        expected_gain: of training every block that is worth it in full, which gains 1.
        memory_share, time_share: of full fine-tuning of the workload as it was asked for.
    """

    mode: Mode
    plan: Plan
    workload: Workload
    expected_gain: float
    prediction: Prediction
    memory_share: float
    time_share: float

    @property
    def what(self) -> str:
        """What trains, and how, in words."""
        work, last = self.workload, len(self.plan.blocks) - 1
        boundary = self.plan.boundary
        blocks = f"block {last}" if boundary == last else f"blocks {boundary}-{last}"
        parts = ["the head alone" if self.mode == "head" else f"{blocks} {_HOW[self.mode]}"]
        parts.append(f"batches of {work.batch}" + (f" x {work.accumulation}" if work.accumulation > 1 else ""))
        parts += ["checkpointing"] * work.checkpointing + ["an activation cache"] * work.activation_cache
        return ", ".join(parts)

    @property
    def line(self) -> str:
        """What trains, what it is expected to gain, and what it takes."""
        found = self.prediction
        takes = [
            f"{size_text(found.peak_memory_bytes)} ({self.memory_share:.2f} of full fine-tuning's)",
            f"{self.time_share:.2f} of its time",
            *([f"{size_text(found.disk_bytes)} on disk"] if found.disk_bytes else []),
        ]
        return f"{self.what}: gain {self.expected_gain:.2f}, {', '.join(takes)}"

    def document(self) -> dict[str, Any]:
        """Plain data: the settings and what they are predicted to take."""
        work = self.workload
        return {
            "boundary": self.plan.boundary,
            "mode": self.mode,
            "batch": work.batch,
            "accumulation": work.accumulation,
            "checkpointing": work.checkpointing,
            "activation_cache": work.activation_cache,
            "expected_gain": round(self.expected_gain, 6),
            "memory_share": round(self.memory_share, 6),
            "time_share": round(self.time_share, 6),
            "predicted": self.prediction.document(),
        }


@dataclass(frozen=True)
class ConstraintCost:
    """What one limit cost: the gain that the best plan without it, `instead`, has over the chosen one.

    `used` is what the chosen plan takes, in the limit's own unit.
    """

    limit: Limit
    used: float
    gain: float
    instead: Option

    @property
    def line(self) -> str:
        """The cost in words."""
        took = f"{self.limit}: takes {self.limit.text(self.used)}"
        if self.gain <= 0:
            return f"{took}, costs nothing"
        return f"{took}, costs {self.gain:.2f} of the gain: without it {self.instead.what}"

    def document(self) -> dict[str, Any]:
        """Plain data; `limit` and `used` are bytes, and seconds (operations without a speed)."""
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

    `runner_up` is the best that differs in mode, checkpointing or activation cache; None where no such one fits.
    `constraints` tells what each limit of the budget cost.
    """

    runner_up: Option | None = None
    constraints: tuple[ConstraintCost, ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """The choice for people: a label and a line each."""
        runner_up = "no other way fits" if self.runner_up is None else self.runner_up.line
        costs = [("constraint", cost.line) for cost in self.constraints]
        return [("chosen", self.line), ("runner-up", runner_up), *costs]

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **super().document(),
            "runner_up": None if self.runner_up is None else self.runner_up.document(),
            "constraints": [cost.document() for cost in self.constraints],
        }


_HOW = {"full": "in full", "lora": "with LoRA"}
