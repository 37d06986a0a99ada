"""How one run of a study ended."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.records import RunRecord
from frostline.study._grid import Cell


@dataclass(frozen=True)
class Result:
    """The result of one run: its record, or why there is none."""

    cell: Cell
    record: RunRecord | None
    error: str | None = None
