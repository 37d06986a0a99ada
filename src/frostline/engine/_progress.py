"""Progress bars: of the start of a training, and of training with step, loss, speed and memory."""

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
            TextColumn("{task.description}", style="bold", markup=False),
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


class StartBar:
    """Shows what the start of a training waits for: what is being done, and how many rows are done.

    Args:
        console: where it is shown; None: nowhere. The bar appears at the first call, and is removed at the end.
    """

    def __init__(self, console: Console | None) -> None:
        what = TextColumn("{task.description}", style="bold", markup=False)
        columns = (what, BarColumn(bar_width=24), TextColumn("{task.fields[facts]}"))
        hidden = console is None
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
        self._task: TaskID | None = None

    def stage(self, what: str) -> None:
        """Show that `what` begins, of which no rows are counted yet."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._progress.start()
        self._task = self._progress.add_task(what, total=None, facts="")
        self._progress.refresh()

    def rows(self, done: int, total: int) -> None:
        """Show that `done` of `total` rows are done."""
        if self._task is None:
            self.stage("caching pass")
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, facts=f"{done:,}/{total:,} rows")

    def close(self) -> None:
        """Remove the live display."""
        self._progress.stop()


@contextmanager
def start_bar(console: Console | None) -> Iterator[StartBar]:
    """Gives a bar for the start of a training, and closes it. Without a console nothing is shown."""
    bar = StartBar(console)
    try:
        yield bar
    finally:
        bar.close()
