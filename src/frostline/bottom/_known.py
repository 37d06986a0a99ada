"""The rows of a training by key, without those in memory that a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from frostline.bottom._rows import Features
from frostline.rows import Stored


class _Place(NamedTuple):
    """Where a row lies that is read when it is needed, and its tokens."""

    dataset: Any
    place: int
    length: int


class KnownRows(Mapping[str, Features]):
    """Key -> row. Rows in files that do not change are not held: they are read again.

    Args:
        length: gives the tokens of a row.
    """

    def __init__(self, length: Callable[[Features], int]) -> None:
        self._length = length
        self._rows: dict[str, Features | _Place] = {}

    def add(self, key: str, row: Features, dataset: Any, index: int) -> None:
        """Add the row at `index` of a data set."""
        self._rows[key] = _Place(dataset, index, self._length(row)) if is_on_disk(dataset) else row

    def length(self, key: str) -> int:
        """The tokens of a row."""
        row = self._rows[key]
        return row.length if isinstance(row, _Place) else self._length(row)

    def some(self, keys: list[str]) -> KnownRows:
        """The rows with these keys."""
        found = KnownRows(self._length)
        found._rows = {key: self._rows[key] for key in keys}
        return found

    def __getitem__(self, key: str) -> Features:
        row = self._rows[key]
        return row.dataset[row.place] if isinstance(row, _Place) else row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def is_on_disk(dataset: Any) -> bool:
    """Whether the rows of a data set lie in a file that does not change."""
    return isinstance(getattr(dataset, "rows", None), Stored)
