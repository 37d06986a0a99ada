"""The value that a row has in a column, of the type that is asked for; else an error with the row's place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from frostline.core.errors import DataError
from frostline.rows._files import Row, kind_of

LONGEST_NAME = 40
SURROGATE = re.compile("[\ud800-\udfff]")


def cell(row: Row, column: str) -> Any:
    """The value in a column; `translation.en` is the value `en` of the object in the column `translation`."""
    if column in row.values:
        return row.values[column]
    outer, _, inner = column.partition(".")
    if inner and isinstance(row.values.get(outer), dict):
        return cell(Row(row.values[outer], f"{row.where}: column '{outer}'"), inner)
    raise DataError(f"{row.where}: no column '{column}', only {listed(row.values)}: add it to this row")


def optional_cell(row: Row, column: str | None) -> Any:
    """The value in a column; None where there is no such column, or the value is empty."""
    if column is None or (column not in row.values and column.partition(".")[0] not in row.values):
        return None
    value = cell(row, column)
    return None if isinstance(value, str) and not value.strip() else value


def text(row: Row, column: str) -> str:
    """The text in a column."""
    return as_text(cell(row, column), row, column)


def optional_text(row: Row, column: str | None) -> str | None:
    """The text in a column; None where there is none."""
    value = optional_cell(row, column)
    return None if value is None else as_text(value, row, str(column))


def texts(row: Row, column: str) -> tuple[str, ...]:
    """The texts in a column of lists; a text alone counts as one."""
    if isinstance(cell(row, column), str):
        return (text(row, column),)
    return tuple(as_text(value, row, f"{column}[{i}]") for i, value in enumerate(entries(row, column)))


def entries(row: Row, column: str) -> list[Any]:
    """The list in a column, with at least one entry."""
    value = cell(row, column)
    if not isinstance(value, list):
        raise DataError(f"{row.where}: column '{column}' must be a list, found {kind_of(value)}")
    if not value:
        raise DataError(f"{row.where}: column '{column}' is an empty list: it needs at least one entry")
    return value


def as_text(value: object, row: Row, column: str) -> str:
    """The value, where it is a text with something in it.

    Args:
        value: the value.
        row: where it is from, for messages.
        column: its column, for messages.

    Raises `DataError` where it is not.
    """
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column '{column}' must be text, found {kind_of(value)}")
    if not value or value.isspace():
        raise DataError(f"{row.where}: column '{column}' is empty: give it a text")
    if not value.isascii() and SURROGATE.search(value):
        raise DataError(f"{row.where}: column '{column}' is not valid Unicode: it has half of a surrogate pair")
    return value


def listed(names: Iterable[str], most: int = 12) -> str:
    """The names in order of the alphabet, at most so many of them."""
    ordered = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in sorted(map(str, names))]
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "none") + more
