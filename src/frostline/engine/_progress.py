"""The progress bar of training: step, loss, speed, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from frostline.engine._meter import MemoryMeter, StepMeter


class ProgressBar(TrainerCallback):
    """A live bar on `console` (standard error, so that `--json` output stays clean)."""

    def __init__(
        self, console: Console, title: str, memory: MemoryMeter, steps: StepMeter, loss: Callable[[], float]
    ) -> None:
        self._title = title
        self._memory = memory
        self._steps = steps
        self._loss = loss
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=state.max_steps, completed=state.global_step, facts="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._task is not None:
            median = self._steps.median
            speed = f"{1 / median:.1f} steps/s" if median else ""
            facts = f"loss {self._loss():.3f}  {speed}  {self._memory.peak_bytes / 2**20:,.0f} MiB"
            self._progress.update(self._task, completed=state.global_step, facts=facts)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        self._progress.stop()
