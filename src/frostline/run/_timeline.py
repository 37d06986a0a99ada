"""The time of a training step, divided among the blocks and what is around them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback

from frostline.anatomy import Anatomy, get_block
from frostline.cost import StepTimes
from frostline.engine import Trainer
from frostline.hooks import hidden_of
from frostline.processes import running

Clock = Literal["wall", "cpu"]
Clocks = Mapping[Clock, Callable[[], float]]
CLOCKS: Clocks = {"wall": time.perf_counter, "cpu": time.process_time}

WARM_UP = 2
"""Steps that are not counted."""
FEWEST = 3
"""The least number of steps that are counted."""


class Timeline:
    """The seconds of every owner in every step, on each clock.

    A block owns its forward pass, and the time from the gradient of its output to that of its input. The last block
    owns all between its input and the gradient of it, head and loss included.
    """

    def __init__(self, clocks: Clocks = CLOCKS) -> None:
        self._clocks = clocks
        self._steps: list[dict[tuple[Clock, str | int], float]] = []
        self._step: dict[tuple[Clock, str | int], float] = defaultdict(float)
        self._last = {clock: read() for clock, read in clocks.items()}
        self._blocks = 0

    def until_now(self, owner: str | int) -> None:
        """The time since the last call was `owner`'s."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        for clock, read in self._clocks.items():
            now = read()
            self._step[clock, owner] += now - self._last[clock]
            self._last[clock] = now

    def end_step(self) -> None:
        self._steps.append(self._step)
        self._step = defaultdict(float)

    def median(self, owner: str | int, clock: Clock) -> float:
        """The median seconds of a step that belong to `owner`, without the warm-up."""
        return statistics.median(step[clock, owner] for step in self._steps[WARM_UP:])

    def watch(self, model: nn.Module, anatomy: Anatomy) -> None:
        """From now on the blocks of `model` tell when they begin and end."""
        self._blocks = len(anatomy.blocks)
        for index in range(self._blocks - 1):
            block = get_block(model, anatomy, index)
            block.register_forward_pre_hook(lambda *_: self.until_now("rest"))
            block.register_forward_hook(lambda _, __, output, index=index: self._leaves(index, output))

    def _leaves(self, index: int, output: Any) -> None:
        self.until_now(index)
        hidden: Any = hidden_of(output)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.until_now(index + 1))

    def times(self, clock: Clock, embeddings: float) -> StepTimes:
        """The step by part, medians; `embeddings` goes with it."""
        return StepTimes(
            blocks=tuple(self.median(index, clock) for index in range(self._blocks - 1)),
            top=self.median(self._blocks - 1, clock),
            optimizer=self.median("optimizer", clock),
            rest=self.median("rest", clock),
            embeddings=embeddings,
        )


class TimedTrainer(Trainer):
    """A trainer with a timeline; what comes after the last gradient of a block is the `lowest` trained block's."""

    timeline: Timeline

    def training_step(self, *inputs: Any, **options: Any) -> torch.Tensor:
        self.timeline.until_now("rest")
        loss = super().training_step(*inputs, **options)
        self.timeline.until_now(self.applied.plan.boundary)
        return loss


class StepsInTime(TrainerCallback):
    """Ends the steps of a timeline, and training after `seconds` seconds, the warm-up left out."""

    def __init__(self, timeline: Timeline, seconds: float) -> None:
        self._timeline, self._seconds = timeline, seconds
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._timeline.until_now("optimizer")
        self._timeline.end_step()
        counted = state.global_step - WARM_UP
        if counted <= 0:
            self._begun = time.perf_counter()
        elif counted >= FEWEST and running().any(time.perf_counter() - self._begun > self._seconds):
            control.should_training_stop = True
