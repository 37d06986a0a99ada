"""A figure of the report: drawings, and their numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from frostline.core.shown import one_line
from frostline.report._format import MISSING
from frostline.report._runs import Run
from frostline.report._svg import swatch
from frostline.report._table import Group, TableRow


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by, None for text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Legend:
    """What a mark stands for. `strategy`: the mark goes when the filter hides that row; empty: it stays."""

    mark: Markup
    text: str
    strategy: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: its place on the page, unique.
        title: what it shows.
        note: how to read it.
        drawings: one or more SVGs.
        columns: the headings of its table.
        rows: the numbers of the drawings.
        legend: what the marks stand for.
        wide: it needs the full width of the page.
        small: its drawings are small, several beside each other.
    """

    name: str
    title: str
    note: str
    drawings: tuple[Markup, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: tuple[Legend, ...] = ()
    wide: bool = False
    small: bool = False

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column whether it holds numbers."""
        return tuple(any(row[place].value is not None for row in self.rows) for place in range(len(self.columns)))


def number(value: float | None, text: str | None = None) -> Cell:
    """A cell with a number; `text` is how it is shown, else it is shown with six figures."""
    if value is None:
        return Cell(MISSING)
    if not math.isfinite(value):
        return Cell(str(value))
    return Cell(f"{value:.6g}" if text is None else text, float(value))


def words(*texts: str) -> tuple[Cell, ...]:
    """Cells of text."""
    return tuple(Cell(one_line(text)) for text in texts)


def unit_of(values: Sequence[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit, as its size and name, in which the largest value is at least 1."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    return next(((size, name) for size, name in reversed(units) if most >= size), units[0])


SECONDS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"))
BYTES = ((1.0, "bytes"), (1024.0, "KiB"), (1024.0**2, "MiB"), (1024.0**3, "GiB"))


@dataclass(frozen=True)
class Member:
    """A row of a group with its runs; `mark` is the number of its colour and shape, the same on the whole page."""

    row: TableRow
    runs: tuple[Run, ...]
    mark: int

    @property
    def name(self) -> str:
        return one_line(self.row.strategy)

    def legend(self, line: bool = False) -> Legend:
        """What its mark stands for."""
        return Legend(swatch(self.mark, line), self.name, self.row.strategy)


@dataclass(frozen=True)
class Subject:
    """What figures are drawn of: a group and its members; `name` is a prefix for the names of its figures."""

    name: str
    group: Group
    members: tuple[Member, ...]
