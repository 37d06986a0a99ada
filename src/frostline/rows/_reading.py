"""How rows are read: the kind of task and the roles of its columns."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from frostline.core.documents import parse_yaml
from frostline.core.errors import ConfigError, DataError
from frostline.rows._cells import listed, optional_cell
from frostline.rows._files import Rows
from frostline.rows._forms import FORMS, PLAIN_TEXT, Found, Used, plain
from frostline.rows._kinds import TaskKind
from frostline.rows._labels import MANY_CLASSES, kind_of_labels, number
from frostline.rows._options import TaskOptions

OF_TEXTS = (TaskKind.CLASSIFICATION, TaskKind.REGRESSION, TaskKind.MULTI_LABEL)
"""The kinds of task whose rows have the roles text, pair and label."""
SHOWN = 150
"""So many characters of options an error message has: a message is one line."""
TARGETS = ("label", "completion", "references", "tags", "answers")
NO_CONTENT = re.compile(
    r"(.*_)?(id|idx|index|uuid|guid|url|uri|link|date|time|timestamp|created_at|split|lang)|column_\d+"
)


@dataclass(frozen=True)
class Reading:
    """How rows become examples.

    Attributes:
        kind: the kind of task.
        columns: role -> column (the choices may have several).
        prompt: template around the prompt.
        label_form: how a label says which choice is right, or `flags` for lists of zeros and ones.
    """

    kind: TaskKind
    columns: Mapping[str, str | tuple[str, ...]]
    prompt: str = "{}"
    label_form: str = ""

    def column(self, role: str) -> str:
        """The column of a role that has one."""
        return str(self.columns[role])

    def optional(self, role: str) -> str | None:
        """The column of a role; None where the rows do not have it."""
        return self.column(role) if role in self.columns else None

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(one for column in self.columns.values() for one in _each(column))

    def described(self, outcome: str = "") -> str:
        """One line that says how rows are read. `outcome` says more of what is predicted: "3 classes"."""
        if self.kind in OF_TEXTS and "pair" in self.columns:
            name = "pairs"
        elif self.kind is TaskKind.LANGUAGE:
            name = "chats" if "messages" in self.columns else "plain text"
        else:
            name = self.kind.replace("-choice", " choice")
        roles = sorted(self.columns, key=lambda role: role != "system")
        given = ", ".join(one for role in roles if role not in TARGETS for one in _each(self.columns[role]))
        wanted = ", ".join(self.column(role) for role in TARGETS if role in self.columns)
        more = f" ({outcome})" if outcome else ""
        return f"read as {name}: {given}{f' -> {wanted}' if wanted else ''}{more}"


def _each(column: str | tuple[str, ...]) -> tuple[str, ...]:
    return column if isinstance(column, tuple) else (column,)


def choose_reading(rows: Rows, options: TaskOptions) -> Reading:
    """The reading that fits the columns and the options.

    Columns that hold all of another reading's columns and more come before it: text with a label is a classification,
    and not also plain text with one more column.

    Raises `DataError` when a mapped column is missing, when rows hold preferences, and when no reading fits or more
    than one; the message has the options that decide.
    """
    mapped = options.columns.given()
    for role, column in mapped.items():
        for one in _each(column):
            if one not in rows.columns and one.partition(".")[0] not in rows.columns:
                raise DataError(
                    f"{rows.rows[0].where}: data.columns.{role}: no column '{one}': use one of {listed(rows.columns)}"
                )
    found = Found(rows)
    if not mapped and options.kind is None:
        _refuse_preferences(found)
    fits = _fitting(found, mapped, options) or list(_plain_text(found, mapped, options))
    widest = _widest(fits)
    if len(widest) == 1:
        reading = widest[0]
        if reading.kind is TaskKind.CLASSIFICATION:
            reading = replace(reading, kind=kind_of_labels(rows, reading.column("label"), options))
        if reading.used == ("text",) and not mapped and options.kind is None:
            _refuse_a_forgotten_label(found)
        return reading

    def deciding(one: Reading) -> Mapping[str, str | tuple[str, ...]]:
        few = {
            role: column
            for role, column in one.columns.items()
            if any(other.columns.get(role) != column for other in widest)
        }
        return few if len(_widest(_fitting(found, mapped | few, options))) == 1 else one.columns

    columns = f"{rows.origin}: columns {listed(rows.columns, 6)}"
    if widest:
        ways = _within((f"{one.kind} ({flags(deciding(one))})" for one in widest), SHOWN)
        raise DataError(f"{columns} fit more than one kind: {ways}: use the options of one")
    ways = _within((flags(columns) for columns in _guesses(found, options.kind)), SHOWN)
    otherwise = "a column for each part of the task: see docs/tasks.md"
    raise DataError(f"{columns} do not make a {options.kind or 'known'} task: use {ways or otherwise}")


def _widest(fits: Sequence[Reading]) -> list[Reading]:
    """The readings whose columns are not all in another one that has more."""
    return [one for one in fits if not any({*one.used} < {*other.used} for other in fits)]


def _within(ways: Iterable[str], most: int) -> str:
    """The first ways, joined, at least one and no more than fit into so many characters."""
    shown = ""
    for way in ways:
        if shown and len(shown) + len(way) > most:
            break
        shown += f" or {way}" if shown else way
    return shown


def _fitting(found: Found, mapped: Used, options: TaskOptions) -> list[Reading]:
    kind = TaskKind.CLASSIFICATION if options.kind in OF_TEXTS else options.kind
    fits: list[Reading] = []
    for form in FORMS:
        for columns in form.matches(found, mapped) if kind in (None, form.kind) else ():
            if all(one.columns != columns for one in fits):
                fits.append(Reading(form.kind, columns))
    return fits


def _plain_text(found: Found, mapped: Used, options: TaskOptions) -> Iterator[Reading]:
    if options.kind in (None, TaskKind.LANGUAGE):
        yield from (Reading(PLAIN_TEXT.kind, columns) for columns in PLAIN_TEXT.matches(found, mapped))


def _refuse_preferences(found: Found) -> None:
    names = found.names
    if "chosen" in names and "rejected" in names:
        raise DataError(
            f"{found.rows.origin}: rows with chosen and rejected answers are preferences, not a task of frostline: use "
            "TRL's DPOTrainer with frostline.attach(trainer), or map the columns to train on the chosen answers alone"
        )
    if {"prompt", "completion", "label"} <= names.keys() and found.shape(names["label"][0]) == {"boolean"}:
        raise DataError(
            f"{found.rows.origin}: completions with a label true or false are preferences, not a task of frostline: "
            "use TRL's KTOTrainer with frostline.attach(trainer), or map the columns to train on all completions"
        )


def _refuse_a_forgotten_label(found: Found) -> None:
    rows = found.rows.rows
    for column in _inner_columns(found):
        if column == "text":
            continue
        values: set[str] = set()
        most = min(MANY_CLASSES, len(rows) // 2)
        for row in rows:
            if (value := optional_cell(row, column)) is not None:
                values.add(str(value))
                if len(values) > most:
                    break
        if 1 < len(values) <= most:
            raise DataError(
                f"{found.rows.origin}: column '{column}' may be the label of 'text' or not matter: use "
                f"{flags({'label': column})} for a classification, data.kind=language for plain text"
            )


def flags(columns: Mapping[str, str | tuple[str, ...]]) -> str:
    """The options that map these columns, as they are typed in a shell."""
    return " ".join(shlex.quote(f"data.columns.{role}={_as_yaml(column)}") for role, column in columns.items())


def _as_yaml(column: str | tuple[str, ...]) -> str:
    if isinstance(column, tuple):
        return f"[{', '.join(json.dumps(one, ensure_ascii=False) for one in column)}]"
    try:
        same = parse_yaml(column, "") == column
    except ConfigError:
        same = False
    return column if same else json.dumps(column, ensure_ascii=False)


def _guesses(found: Found, kind: TaskKind | None) -> Iterator[Mapping[str, str]]:
    """Mappings that may be meant, from what stands in the columns: for a classification, and for texts to write."""
    rows = found.rows.rows
    lengths: dict[str, float] = {}
    distinct: dict[str, int] = {}
    for column in _inner_columns(found):
        values = [value for row in rows if (value := optional_cell(row, column)) is not None]
        shape = found.shape(column)
        if shape == {"objects"} and kind in (None, TaskKind.LANGUAGE):
            yield {"messages": column}
        if not values or shape & {"list", "texts", "objects", "object"} or NO_CONTENT.fullmatch(plain(column)):
            continue
        distinct[column] = len(set(map(str, values)))
        if shape == {"text"} and not all(number(value) is not None for value in values):
            lengths[column] = sum(map(len, values)) / len(values)
    longest = sorted(lengths, key=lambda column: -lengths[column])
    labels = [
        column
        for column in distinct
        if column not in longest[:1] and (distinct[column] < len(rows) or column not in lengths)
    ]
    if longest and labels and kind in (None, *OF_TEXTS):
        label = min(labels, key=lambda column: distinct[column])
        yield {"text": longest[0], "label": label}
        others = [column for column in longest[1:] if column != label and lengths[column] > lengths[longest[0]] / 3]
        if others:
            yield {"text": longest[0], "pair": others[0], "label": label}
    if len(longest) > 1 and kind in (None, TaskKind.GENERATION):
        prompt, completion = sorted(longest[:2], key=list(lengths).index)
        yield {"prompt": prompt, "completion": completion}
    elif longest and not labels and kind in (None, TaskKind.LANGUAGE):
        yield {"text": longest[0]}


def _inner_columns(found: Found) -> Iterator[str]:
    for column in found.rows.columns:
        if found.shape(column) == {"object"}:
            inner = dict.fromkeys(key for row in found.rows.rows for key in optional_cell(row, column) or ())
            yield from (f"{column}.{key}" for key in inner)
        else:
            yield column


def reading_notices(reading: Reading, rows: Sequence[Rows], outcome: str) -> Iterator[str]:
    """How the rows are read, and which of their columns are not.

    Args:
        reading: how they are read.
        rows: the rows of every split.
        outcome: says more of what is predicted, such as "3 classes".
    """
    yield reading.described(outcome)
    used = {*reading.used, *(column.partition(".")[0] for column in reading.used)}
    unused = dict.fromkeys(column for part in rows for column in part.columns if column not in used)
    if unused:
        yield f"columns not used: {listed(unused, 30)}"
