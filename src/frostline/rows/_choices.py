"""Rows with several choices of which one is right, in the forms that data sets have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from string import ascii_lowercase, ascii_uppercase
from typing import Any, NamedTuple

from frostline.core.errors import DataError
from frostline.rows._cells import as_text, cell, text, texts
from frostline.rows._files import Row
from frostline.rows._forms import choice_name, in_order
from frostline.rows._labels import label_text
from frostline.rows._reading import Reading


class Choices(NamedTuple):
    """The texts of a row's choices, and their names where they have some: letters, numbers or the names of columns."""

    texts: tuple[str, ...]
    names: tuple[str, ...] = ()
    certain: bool = False
    """Whether a label that is a name means the choice with this name. The numbers of columns may count from 0 too."""


Find = Callable[[str, Choices], int | None]


def choices_of(row: Row, columns: str | tuple[str, ...]) -> Choices:
    """The choices of a row: from a column each, from a list, or from an object that has them by their names, or two
    lists of texts and names (as in ARC)."""
    if isinstance(columns, tuple):
        names = [choice_name(column) for column in columns]
        certain = all(name.isalpha() for name in names)
        found = Choices(tuple(text(row, column) for column in columns), tuple(names) if all(names) else (), certain)
    elif isinstance(value := cell(row, columns), dict):
        found = _of_object(value, row, columns)
    else:
        found = Choices(texts(row, columns))
    if len(found.texts) < 2:
        raise DataError(f"{row.where}: the row has {len(found.texts)} choice(s): give it at least two")
    return found


def _of_object(value: Mapping[str, Any], row: Row, column: str) -> Choices:
    if isinstance(given := value.get("text"), list):
        found = tuple(as_text(one, row, f"{column}.text") for one in given)
        names = value.get("label")
        if names is None:
            return Choices(found)
        if not isinstance(names, list) or len(names) != len(found):
            raise DataError(f"{row.where}: column '{column}' must have as many names (label) as texts, {len(found)}")
        return Choices(found, tuple(label_text(row, f"{column}.label", name) for name in names), certain=True)
    # In a Parquet file every row has the names of all rows, with nothing at those that it does not use.
    keys = [key for key, one in value.items() if one is not None]
    keys = in_order(keys) if all(len(key) == 1 or key.isdecimal() for key in keys) else keys
    return Choices(
        tuple(as_text(value[key], row, f"{column}.{key}") for key in keys), tuple(map(str.strip, keys)), certain=True
    )


def _by_name(label: str, choices: Choices) -> int | None:
    same = [i for i, name in enumerate(choices.names) if name == label]
    # Else in small letters, or where the label is the whole name of a column: answerA.
    same = same or [i for i, name in enumerate(choices.names) if name.lower() in (label.lower(), choice_name(label))]
    return same[0] if len(same) == 1 else None


def _by_text(label: str, choices: Choices) -> int | None:
    plain = [choice.strip() for choice in choices.texts]
    return plain.index(label) if plain.count(label) == 1 else None


def _by_letter(label: str, choices: Choices) -> int | None:
    if any(len(name) == 1 and name.isalpha() for name in choices.names):
        return None  # the choices have letters of their own
    place = ascii_uppercase.find(label.upper()) if len(label) == 1 else -1
    return place if 0 <= place < len(choices.texts) else None


def _from(first: int) -> Find:
    def find(label: str, choices: Choices) -> int | None:
        place = int(label) - first if re.fullmatch(r"\d{1,3}", label) else -1
        return place if 0 <= place < len(choices.texts) else None

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
    """The form of `FORMS` in which the labels of all rows say the right choice. The choices' own names come first.

    Args:
        rows: all rows of the task.
        reading: how they are read.
        origin: where they are from, for messages.

    Raises `DataError` where no form fits, or where several do and do not agree.
    """
    columns, column = reading.columns["choices"], reading.column("label")
    cells = [(label_text(row, column), choices_of(row, columns)) for row in rows]
    fits = {}
    for name, find in FORMS.items():
        found: list[int | None] = []
        for label, choices in cells:
            found.append(find(label, choices))
            if found[-1] is None:
                break
        else:
            fits[name] = tuple(found)
    if not fits:
        shown = ", ".join(sorted({label for label, _ in cells})[:4])
        raise DataError(
            f"{origin}: column '{column}' ({shown}) does not say in one way which choice is right: use its number, its "
            "letter or its text in every row, or 'data.labels=[first, second, ...]'"
        )
    if "name" in fits and all(choices.certain for _, choices in cells):
        return "name"
    if len(set(fits.values())) > 1:
        most = max(len(choices.texts) for _, choices in cells)
        if "letter" in fits:
            letters = ascii_uppercase if cells[0][0].isupper() else ascii_lowercase
            raise DataError(
                f"{origin}: column '{column}' may have the letters of the choices or repeat their texts: use "
                f"'data.labels=[{', '.join(letters[:most])}]' for letters, or write numbers from 0 in place of texts"
            )
        ways = (f"'data.labels=[{', '.join(str(i + first) for i in range(most))}]'" for first in (0, 1))
        raise DataError(
            f"{origin}: column '{column}' may count the choices from 0 or from 1, or repeat their texts: use "
            f"{' or '.join(ways)}"
        )
    return next(iter(fits))


def right_choice(row: Row, reading: Reading, choices: Choices, labels: tuple[str, ...]) -> int:
    """The index of the right choice.

    Args:
        row: the row.
        reading: how rows are read.
        choices: the row's choices.
        labels: the labels of the first choice, the second, and so on, where the user gave them.

    Raises `DataError` where the label names none, and where `labels` and the choices' own names do not agree.
    """
    column = reading.column("label")
    label = label_text(row, column)
    count = len(choices.texts)
    if labels:
        index = labels.index(label) if label in labels[:count] else None
        own = _by_name(label, choices) if choices.certain else None
        if own is not None and own != index:
            if {name.lower() for name in choices.names} != {name.lower() for name in labels[:count]}:
                raise DataError(
                    f"{row.where}: the choices have names of their own ({', '.join(choices.names)}), in which label "
                    f"'{label}' is not the one that data.labels says: leave data.labels out"
                )
            index = own
    else:
        index = FORMS[reading.label_form](label, choices)
    if index is None:
        raise DataError(
            f"{row.where}: label '{label}' in column '{column}' is none of the {len(choices.texts)} choices"
        )
    return index
