"""Make examples from rows: choose the kind of task by the columns, and check every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frostline.core.errors import DataError
from frostline.tasks._options import TaskOptions
from frostline.tasks._rows import Row, Rows, kind_of
from frostline.tasks._task import Example, Message, TaskKind


@dataclass(frozen=True)
class ColumnSet:
    """The roles of columns that make one kind of task."""

    kind: TaskKind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def columns(self, available: Mapping[str, str]) -> dict[str, str] | None:
        """The part of `available` (role -> column) that is used; None where a required role is missing."""
        if not all(role in available for role in self.required):
            return None
        return {role: available[role] for role in (*self.required, *self.optional) if role in available}


COLUMN_SETS = (
    ColumnSet(TaskKind.CLASSIFICATION, ("text", "label"), ("pair",)),
    ColumnSet(TaskKind.GENERATION, ("prompt", "completion"), ("references",)),
    ColumnSet(TaskKind.GENERATION, ("prompt", "references")),
    ColumnSet(TaskKind.LANGUAGE, ("messages",)),
    ColumnSet(TaskKind.LANGUAGE, ("text",)),
)


@dataclass(frozen=True)
class Reading:
    """How rows become examples.

    Attributes:
        kind: the kind of task.
        columns: role -> column.
        prompt: template around the prompt.
    """

    kind: TaskKind
    columns: Mapping[str, str]
    prompt: str = "{}"


def choose_reading(rows: Rows, options: TaskOptions) -> Reading:
    """The reading that fits the columns and the options.

    Raises `DataError` when a mapped column is missing, and when no reading fits or more than one.
    """
    found = list(rows.rows[0].values)
    mapped = options.columns.given()
    for role, column in mapped.items():
        if column not in found:
            raise DataError(
                f"{rows.rows[0].where}: data.columns.{role}: no column '{column}': use one of {_listed(found)}"
            )
    roles = {role for one in COLUMN_SETS for role in (*one.required, *one.optional)}
    available = {role: role for role in roles if role in found} | mapped
    fits = [
        Reading(one.kind, used)
        for one in COLUMN_SETS
        if options.kind in (None, one.kind)
        and (used := one.columns(available)) is not None
        and mapped.keys() <= used.keys()
    ]
    # Text with a label is a classification, and not also plain text with one more column.
    widest = [reading for reading in fits if not any(reading.columns.keys() < other.columns.keys() for other in fits)]
    if len(widest) == 1:
        return widest[0]
    if widest:
        kinds = " or ".join(f"{reading.kind} ({', '.join(reading.columns)})" for reading in widest)
        raise DataError(
            f"{rows.origin}: columns {_listed(found)} fit more than one kind: {kinds}: use data.kind or data.columns"
        )
    raise DataError(
        f"{rows.origin}: columns {_listed(found)} do not make a {options.kind or 'known'} task: use data.columns for "
        "text and label (and pair), prompt and completion (or references), messages, or text"
    )


def label_names(rows: Iterable[Row], column: str) -> tuple[str, ...]:
    """The distinct labels of `rows`: whole numbers in numeric order, others in alphabetic order."""
    names = {label_text(row, column) for row in rows}
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def make_examples(rows: Iterable[tuple[str, Row]], reading: Reading, labels: tuple[str, ...]) -> list[Example]:
    """An example for every (id, row). Raises `DataError` with the place of the first bad row."""
    make = _MAKERS["messages" if "messages" in reading.columns else reading.kind]
    return [make(name, row, reading, labels) for name, row in rows]


def label_text(row: Row, column: str) -> str:
    """A row's label as text. Whole numbers and booleans become their JSON text."""
    value = _value(row, column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return _as_text(value, row, column)


def _classification(name: str, row: Row, reading: Reading, labels: tuple[str, ...]) -> Example:
    columns = reading.columns
    label = label_text(row, columns["label"])
    if label not in labels:
        raise DataError(
            f"{row.where}: unknown label '{label}' in column '{columns['label']}': use one of {', '.join(labels)}"
        )
    return Example(
        name,
        text=_text(row, columns["text"]),
        pair=_text(row, columns["pair"]) if "pair" in columns else None,
        label=labels.index(label),
    )


def _generation(name: str, row: Row, reading: Reading, labels: tuple[str, ...]) -> Example:
    columns = reading.columns
    completion = (_text(row, columns["completion"]),) if "completion" in columns else ()
    references = _texts(row, columns["references"]) if "references" in columns else completion
    return Example(
        name,
        text=reading.prompt.format(_text(row, columns["prompt"])),
        target=(*completion, *references)[0],
        references=references,
        group=_text(row, columns["group"]) if "group" in columns else "",
    )


def _plain(name: str, row: Row, reading: Reading, labels: tuple[str, ...]) -> Example:
    return Example(name, text=_text(row, reading.columns["text"]))


def _chat(name: str, row: Row, reading: Reading, labels: tuple[str, ...]) -> Example:
    column = reading.columns["messages"]
    messages = tuple(_message(turn, i, row, column) for i, turn in enumerate(_list(row, column)))
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{row.where}: column '{column}' needs at least one message with the role 'assistant'")
    return Example(name, messages=messages)


def _message(turn: object, index: int, row: Row, column: str) -> Message:
    place = f"{column}[{index}]"
    if not isinstance(turn, dict):
        raise DataError(f"{row.where}: {place} must be an object with role and content, found {kind_of(turn)}")
    for key, value in turn.items():
        if key not in ("role", "content") and value is not None:
            raise DataError(f"{row.where}: {place} has the key '{key}': a message must have only role and content")
    return Message(
        role=_as_text(turn.get("role"), row, f"{place}.role"),
        content=_as_text(turn.get("content"), row, f"{place}.content"),
    )


def _value(row: Row, column: str) -> Any:
    if column not in row.values:
        raise DataError(f"{row.where}: no column '{column}', only {_listed(row.values)}: add it to this row")
    return row.values[column]


def _text(row: Row, column: str) -> str:
    return _as_text(_value(row, column), row, column)


def _as_text(value: object, row: Row, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column '{column}' must be text, found {kind_of(value)}")
    if not value.strip():
        raise DataError(f"{row.where}: column '{column}' is empty: give it a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{row.where}: column '{column}' is not valid Unicode: it has half of a surrogate pair")
    return value


def _list(row: Row, column: str) -> list[Any]:
    value = _value(row, column)
    if not isinstance(value, list):
        raise DataError(f"{row.where}: column '{column}' must be a list, found {kind_of(value)}")
    if not value:
        raise DataError(f"{row.where}: column '{column}' is an empty list: it needs at least one entry")
    return value


def _texts(row: Row, column: str) -> tuple[str, ...]:
    if isinstance(_value(row, column), str):
        return (_text(row, column),)
    return tuple(_as_text(value, row, f"{column}[{i}]") for i, value in enumerate(_list(row, column)))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


_MAKERS: dict[str, Callable[[str, Row, Reading, tuple[str, ...]], Example]] = {
    TaskKind.CLASSIFICATION: _classification,
    TaskKind.GENERATION: _generation,
    TaskKind.LANGUAGE: _plain,
    "messages": _chat,
}
