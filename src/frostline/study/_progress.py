"""Which run of a study is made, and how long the rest will take, by the runs whose time is known."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from frostline.core.sizes import duration_text
from frostline.records import RunRecord
from frostline.study._grid import Cell


class RunTimes:
    """The seconds that runs took, from the start of the process to its end."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, cell: Cell, seconds: float) -> None:
        """A run of the cell took so long."""
        for key in _keys(cell):
            self._seconds[key].append(seconds)

    def left(self, cells: Sequence[Cell]) -> float | None:
        """The seconds that runs of these cells will take; None where no time is known.

        A run takes the mean of the runs that are most like it: of its model, task and strategy; else of its model and
        task; else of all.
        """
        if not self._seconds:
            return None
        return sum(statistics.fmean(next(self._seconds[k] for k in _keys(c) if k in self._seconds)) for c in cells)


def _keys(cell: Cell) -> tuple[tuple[str, ...], ...]:
    """What runs have in common, the most alike first."""
    config = cell.config
    return (config.model, config.task, cell.label), (config.model, config.task), ()


class Progress:
    """Shows a line when a run begins and when it ends, with the time that is left.

    Args:
        grid: every run of the study, in order.
        console: where it is shown.
    """

    def __init__(self, grid: Sequence[Cell], console: Console) -> None:
        self._grid, self._console = grid, console
        self._left = list(grid)
        self._times = RunTimes()

    def recorded(self, records: Sequence[RunRecord | None]) -> None:
        """Learn from the runs that were finished before; `records` has one for each cell, or None."""
        for cell, record in zip(self._grid, records, strict=True):
            if record is not None and record.status == "finished":
                self._left.remove(cell)
                if (seconds := _seconds(record)) is not None:
                    self._times.add(cell, seconds)

    def begins(self, cell: Cell, what: str) -> None:
        """A run begins, or goes on."""
        self.say(cell, f"{what}; {self._time_left()}")

    def ended(self, cell: Cell, seconds: float, text: str, *, whole: bool, style: str = "") -> None:
        """A run has ended.

        Args:
            cell: of the run.
            seconds: that it took.
            text: how it ended.
            whole: whether it was made from its beginning to its end, so that others will take as long.
            style: of the line.
        """
        if whole:
            self._times.add(cell, seconds)
        self.leave(cell)
        self.say(cell, f"{text}; {self._time_left()}" if self._left else text, style)

    def leave(self, cell: Cell) -> None:
        """Nothing is left to do for a cell."""
        if cell in self._left:
            self._left.remove(cell)

    def say(self, cell: Cell, text: str, style: str = "") -> None:
        """A line about a run."""
        number = self._grid.index(cell) + 1
        self._console.print(f"[{number}/{len(self._grid)}] {cell.folder}: {text}", style=style, soft_wrap=True)

    def _time_left(self) -> str:
        seconds = self._times.left(self._left)
        if seconds is None:
            return "time left: unknown until a run has finished"
        runs = f"{len(self._left)} run{'' if len(self._left) == 1 else 's'}"
        return f"time left: about {duration_text(max(1, round(seconds)))} for {runs}"


def _seconds(record: RunRecord) -> float | None:
    """The seconds from the record's start to its end; None for a run that was resumed, or without readable times."""
    if record.measured is None or record.measured.resumed_at_step or record.finished is None:
        return None
    try:
        seconds = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
    except (TypeError, ValueError):
        return None
    return seconds if seconds >= 0 else None
