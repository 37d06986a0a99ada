"""Progress bars: of the caching pass, and of training with step, loss, speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from frostline.engine._meter import MemoryMeter, StepMeter


class ProgressBar(TrainerCallback):
    """A progress bar for training.

    Args:
        console: where it is shown (standard error, so that `--json` output stays clean).
        title: its text.
        memory: gives the peak memory.
        steps: gives the speed.
        loss: gives the loss of the last step.
    """

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
        """Remove the live display, also after an error."""
        self._progress.stop()


@contextmanager
def pass_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of the amount done and the total. It shows them in a bar, which appears at the first call."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    tasks: list[TaskID] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            progress.start()
            tasks.append(progress.add_task(title, total=total))
        progress.update(tasks[0], completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()
