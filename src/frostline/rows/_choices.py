"""Rows with several choices of which one is right, in the forms that data sets have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase

from frostline.core.errors import DataError
from frostline.rows._cells import as_text, cell, text, texts
from frostline.rows._files import Row
from frostline.rows._labels import label_text
from frostline.rows._reading import Reading

Find = Callable[[str, Row, Sequence[str], str], int | None]


def choices_of(row: Row, columns: str | tuple[str, ...]) -> tuple[str, ...]:
    """The choices of a row: from a column each, from a list, or from an object that has their texts (as in ARC)."""
    if isinstance(columns, tuple):
        found = tuple(text(row, column) for column in columns)
    elif isinstance(value := cell(row, columns), dict):
        found = tuple(as_text(one, row, f"{columns}.text") for one in value.get("text") or ())
    else:
        found = texts(row, columns)
    if len(found) < 2:
        raise DataError(f"{row.where}: the row has {len(found)} choice(s): give it at least two")
    return found


def _by_name(label: str, row: Row, choices: Sequence[str], column: str) -> int | None:
    """Beside the texts stands a list of their names."""
    value = row.values.get(column)
    names = [str(name) for name in value.get("label") or ()] if isinstance(value, dict) else []
    return names.index(label) if label in names[: len(choices)] else None


def _by_text(label: str, row: Row, choices: Sequence[str], column: str) -> int | None:
    plain = [choice.strip() for choice in choices]
    return plain.index(label) if plain.count(label) == 1 else None


def _by_letter(label: str, row: Row, choices: Sequence[str], column: str) -> int | None:
    place = ascii_uppercase.find(label.upper()) if len(label) == 1 else -1
    return place if 0 <= place < len(choices) else None


def _from(first: int) -> Find:
    def find(label: str, row: Row, choices: Sequence[str], column: str) -> int | None:
        place = int(label) - first if re.fullmatch(r"\d{1,3}", label) else -1
        return place if 0 <= place < len(choices) else None

    return find


FORMS: Mapping[str, Find] = {
    "name": _by_name,
    "letter": _by_letter,
    "from 0": _from(0),
    "from 1": _from(1),
    "text": _by_text,
}
"""How a label may say which choice is right."""


def label_form(rows: Iterable[Row], reading: Reading, origin: str) -> str:
    """The form of `FORMS` in which the labels of all rows say the right choice.

    Args:
        rows: all rows of the task.
        reading: how they are read.
        origin: where they are from, for messages.

    Raises `DataError` where no form fits, or where several do and do not agree.
    """
    columns, column = reading.columns["choices"], reading.column("label")
    place = columns if isinstance(columns, str) else ""
    cells = [(label_text(row, column), row, choices_of(row, columns)) for row in rows]
    fits = {}
    for name, find in FORMS.items():
        found: list[int | None] = []
        for label, row, choices in cells:
            found.append(find(label, row, choices, place))
            if found[-1] is None:
                break
        else:
            fits[name] = tuple(found)
    if not fits:
        shown = ", ".join(sorted({label for label, _, _ in cells})[:4])
        raise DataError(
            f"{origin}: column '{column}' ({shown}) does not say in one way which choice is right: use its number, its "
            "letter or its text in every row, or 'data.labels=[first, second, ...]'"
        )
    if len(set(fits.values())) > 1:
        most = max(len(choices) for _, _, choices in cells)
        ways = (f"'data.labels=[{', '.join(str(i + first) for i in range(most))}]'" for first in (0, 1))
        raise DataError(
            f"{origin}: column '{column}' may count the choices from 0 or from 1, or repeat their texts: use "
            f"{' or '.join(ways)}"
        )
    return next(iter(fits))


def right_choice(row: Row, reading: Reading, choices: Sequence[str], labels: tuple[str, ...]) -> int:
    """The index of the right choice. Raises `DataError` where the label names none.

    Args:
        row: the row.
        reading: how rows are read.
        choices: the row's choices.
        labels: the labels of the first choice, the second, and so on, where the user gave them.
    """
    column, columns = reading.column("label"), reading.columns["choices"]
    label = label_text(row, column)
    if labels:
        index = labels.index(label) if label in labels[: len(choices)] else None
    else:
        index = FORMS[reading.label_form](label, row, choices, columns if isinstance(columns, str) else "")
    if index is None:
        raise DataError(f"{row.where}: label '{label}' in column '{column}' is none of the {len(choices)} choices")
    return index
