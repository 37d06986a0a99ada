"""Labels: their names, the numbers of a regression, and what kind of task they make."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any

from frostline.core.errors import DataError
from frostline.core.labels import IGNORED
from frostline.rows._cells import as_text, cell, listed
from frostline.rows._files import Row, Rows, kind_of
from frostline.rows._kinds import TaskKind
from frostline.rows._options import TaskOptions, label_name

MANY_CLASSES = 20
NOT_COUNTED = str(IGNORED)
NO_LABEL = ("-1", "-")
"""What published test sets have in place of a label: GLUE, SNLI."""

LIST = re.compile(r"\s*\[(\s*|.*['\",].*|\s*-?\d+\s*)\]\s*", re.DOTALL)
"""A text that is a list, in JSON or as Python writes it."""
THOUSANDS = re.compile(r"[+-]?\d{1,3}(['., \u00a0\u202f\u2019]\d{3})+([.,]\d+)?")
"""A number with something between its thousands."""


def label_text(row: Row, column: str, value: Any = None) -> str:
    """The name of a row's label. Whole numbers and booleans become their JSON text.

    Args:
        row: the row.
        column: the column of its label.
        value: read in place of what stands in the column.
    """
    name = label_name(cell(row, column) if value is None else value)
    return as_text(name, row, column)


def row_labels(row: Row, column: str) -> list[str]:
    """The names of all labels of a row, where it has a list of them."""
    values = cell(row, column)
    if isinstance(values, str):
        values = _json_list(values)
    if not isinstance(values, list):
        found = kind_of(cell(row, column))
        raise DataError(
            f'{row.where}: column \'{column}\' must be a list of labels, found {found}: write it as ["a", "b"] or []'
        )
    return [label_text(row, f"{column}[{i}]", value) for i, value in enumerate(values)]


def _json_list(text: str) -> list[Any] | None:
    """The list that a text is in JSON, as the cells of CSV files have it; else None."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def check_list_marks(rows: Iterable[Row], column: str, options: TaskOptions, *, tags: bool) -> None:
    """Raise `DataError` for the first row with a mark in its list that may mean "no label".

    Args:
        rows: all rows of the task.
        column: the column of their lists.
        options: `labels` in it decides that a mark is a label.
        tags: whether the lists are tags: a word with -100 has none.
    """
    marks = {NOT_COUNTED, "-1"} - set(options.labels or ()) - ({NOT_COUNTED} if tags else set())
    for row in rows:
        if mark := next((name for name in row_labels(row, column) if name in marks), None):
            way = "give words without a tag -100" if tags else "remove it from the list"
            raise DataError(
                f"{row.where}: the label {mark} in column '{column}' may be a class or mean that there is none: name "
                f"it in data.labels where it is a class, else {way}"
            )


def label_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names: whole numbers in numeric order, others in alphabetic order."""
    distinct = set(names)
    try:
        return tuple(sorted(distinct, key=int))
    except ValueError:
        return tuple(sorted(distinct))


def label_index(name: str, row: Row, column: str, labels: Sequence[str]) -> int:
    """The place of a label among all labels. Raises `DataError` where it is none of them.

    Args:
        name: the label's name.
        row: where it is from, for messages.
        column: its column, for messages.
        labels: the names of all labels.
    """
    if name not in labels:
        raise DataError(f"{row.where}: unknown label '{name}' in column '{column}': use one of {', '.join(labels)}")
    return labels.index(name)


def number(value: object) -> float | None:
    """The number that a value is, also as text, with a point or a comma before its decimals; else None."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*", value):
        value = float(value.strip().replace(",", "."))  # float knows fewer kinds of space than \s
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def kind_of_labels(rows: Rows, column: str, options: TaskOptions) -> TaskKind:
    """The kind of task that a column of labels makes: lists are several labels, numbers with decimals a regression.

    Args:
        rows: the training rows.
        column: the column of their labels.
        options: the kind and the labels in it come before what the column shows.

    Raises `DataError` where most rows have a label of their own, unless the options give the kind.
    """
    if options.kind is not None:
        return options.kind
    found = [(place, value) for place, row in enumerate(rows.rows) if (value := _found(row, column)) is not None]
    values = [value for _, value in found]
    if values and _are_lists(rows, found, column):
        return TaskKind.MULTI_LABEL
    names = [str(label_name(value)) for value in values]
    numbers = [number(value) for value in values]
    if options.labels is None:
        _check_numbers(rows, found, column)
    whole = all(re.fullmatch(r"[+-]?\d+([.,]0*)?", name) for name in names)
    if options.labels is None and values and None not in numbers and not whole:
        return TaskKind.REGRESSION
    if options.labels is None and len(set(names)) > max(MANY_CLASSES, len(names) // 2):
        other = "" if None in numbers else "data.kind=regression if they are numbers to predict, "
        raise DataError(
            f"{rows.origin}: column '{column}' has {len(set(names))} different labels in {len(names)} rows: use "
            f"{other}data.kind=classification if each is a class, data.kind=language to leave it out"
        )
    return TaskKind.CLASSIFICATION


def _are_lists(rows: Rows, found: Sequence[tuple[int, Any]], column: str) -> bool:
    """Whether all values are lists, also as JSON text. Raises `DataError` where only some texts are lists."""
    lists = [_json_list(value) if isinstance(value, str) else value for _, value in found]
    if all(isinstance(value, list) for value in lists):
        return True
    as_lists = any(isinstance(value, str) and LIST.fullmatch(value) for _, value in found)
    if as_lists:
        place, value = next(pair for pair, one in zip(found, lists, strict=True) if not isinstance(one, list))
        shown = listed([str(value)])
        raise DataError(
            f"{rows.rows[place].where}: column '{column}' has lists, but '{shown}' is none in JSON: write "
            '["a", "b"] in every row, or use data.kind=classification if each text is a class'
        )
    return False


def _check_numbers(rows: Rows, found: Sequence[tuple[int, Any]], column: str) -> None:
    """Raise `DataError` for a number that can be read in two ways, and for what is none beside numbers of a score."""
    texts = [(place, value.strip()) for place, value in found if isinstance(value, str)]
    others = [(place, value) for place, value in found if number(value) is None]
    doubtful = [(place, text) for place, text in texts if THOUSANDS.fullmatch(text) and number(text) is None]
    if not doubtful and not others:
        commas = [(place, text) for place, text in texts if "," in text]
        points = any("." in str(label_name(value)) for _, value in found)
        doubtful = commas if points or all(re.search(r",\d{3}$", text) for _, text in commas) else []
    if doubtful and all(isinstance(value, str) and THOUSANDS.fullmatch(value.strip()) for _, value in others):
        place, text = doubtful[0]
        raise DataError(
            f"{rows.rows[place].where}: column '{column}': a mark in '{text}' may be for decimals or for thousands: "
            "write the numbers with a point, and nothing for thousands"
        )
    if 0 < 2 * len(others) < len(found) and any(
        isinstance(value, float) and not value.is_integer() for _, value in found
    ):
        place, value = others[0]
        shown = repr(value) if isinstance(value, str) else kind_of(value)
        raise DataError(
            f"{rows.rows[place].where}: column '{column}' has numbers with decimals, but here {shown}: correct or "
            "remove the row"
        )


def _found(row: Row, column: str) -> Any:
    try:
        value = cell(row, column)
    except DataError:
        return None
    empty = (isinstance(value, str) and not value.strip()) or value != value  # NaN is not equal to itself
    return None if empty else value


def labelled(rows: Rows, column: str, options: TaskOptions) -> tuple[Sequence[int], list[str]]:
    """The places of the rows with a label, and notices. A row with -100 has none, as in the loss.

    -1 and - are what published test sets have for "no label", but may be classes too: `options.labels` decides.

    Args:
        rows: the rows of one split.
        column: the column of their labels.
        options: what the user wrote.

    Raises `DataError` where it does not, and where no row has a label.
    """
    marks = {NOT_COUNTED, *NO_LABEL} - set(options.labels or ())
    names: set[str] = set()
    unlabelled: dict[int, str] = {}
    for i, row in enumerate(rows.rows):
        if (value := _found(row, column)) is None:
            continue
        if (name := str(label_name(value))) in marks:
            unlabelled[i] = name
        else:
            names.add(name)
    if len(unlabelled) == len(rows.rows):
        raise DataError(
            f"{rows.origin}: column '{column}' has {listed(set(unlabelled.values()))} in every row, which means that "
            "there is no label: use another file or split"
        )
    unclear = {name for name in unlabelled.values() if name != NOT_COUNTED}
    if unclear and options.labels is None:
        others = label_names(names)
        mark = min(unclear)
        raise DataError(
            f"{rows.origin}: the label {mark} in column '{column}' may be a class or mean that there is none: use "
            f"'data.labels=[{', '.join((mark, *others))}]' where it is a class, "
            f"'data.labels=[{', '.join(others)}]' to leave these rows out"
        )
    if not unlabelled:
        return range(len(rows.rows)), []
    kept = [i for i in range(len(rows.rows)) if i not in unlabelled]
    left = f"{rows.origin}: {len(unlabelled)} rows left out: their label is {listed(set(unlabelled.values()))}"
    return kept, [left]


def spelling_notices(rows: Iterable[Row], column: str) -> Iterator[str]:
    """Which labels were one class but for spaces and Unicode's forms, and which are two but for capital letters."""
    written = {value for row in rows if isinstance(value := _found(row, column), str)}
    names = {str(label_name(value)) for value in written}
    merged = Counter(str(label_name(value)) for value in written)
    if same := [name for name, count in merged.items() if count > 1]:
        yield (
            f"labels that differ only in spaces at their ends or in their Unicode form are one class: {listed(same)} "
            f"({len(written)} spellings, {len(names)} classes)"
        )
    lower = Counter(name.lower() for name in names)
    if near := [name for name in names if lower[name.lower()] > 1]:
        yield f"labels that differ only in capital letters are different classes: {listed(near)}"
