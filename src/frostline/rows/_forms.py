"""The usual names of columns, and the kinds of task that they make.

A form is one way in which rows hold a task: for each role the names that its column may have. Names are compared in
small letters, with _ for spaces and hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import product
from typing import Any

from frostline.rows._cells import optional_cell
from frostline.rows._files import Rows
from frostline.rows._kinds import TaskKind

Names = tuple[str, ...]
Used = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Form:
    """The roles of columns that make one kind of task, and the usual names of their columns.

    Attributes:
        kind: the kind of task; a classification may turn out to be a regression, or to have several labels a row.
        required: role -> names.
        optional: role -> names.
        closed: whether columns must have these names: the user's own mapping then makes another form.
        yes_or_no: whether the label must be true or false.
    """

    kind: TaskKind
    required: Mapping[str, Names]
    optional: Mapping[str, Names] = field(default_factory=dict)
    closed: bool = False
    yes_or_no: bool = False

    def matches(self, found: Found, mapped: Used) -> Iterator[Used]:
        """Every way in which the columns have all roles of this form, with those that the user mapped."""
        roles = {**self.required, **self.optional}
        if not mapped.keys() <= roles.keys():
            return
        options: list[Sequence[str | Names | None]] = []
        for role, names in roles.items():
            if role in mapped:
                closed = self.closed and plain(str(mapped[role])) not in names
                columns: Sequence[str | Names | None] = [] if closed else [mapped[role]]
            else:
                columns = found.columns(role, names)
            if self.yes_or_no and role == "label" and role not in mapped:
                columns = [column for column in columns if found.shape(str(column)) == {"boolean"}]
            options.append([*columns, None] if role in self.optional and role not in mapped else columns)
        for chosen in product(*options):
            used = [column for column in chosen if column is not None]
            if len(set(used)) == len(used):
                yield {role: column for role, column in zip(roles, chosen, strict=True) if column is not None}


TEXTS = (
    *("text", "sentence", "review", "content", "comment", "tweet", "body", "message", "utterance", "description"),
    *("document", "post", "query", "question"),
)
LABELS = (
    *("label", "labels", "gold_label", "class", "category", "sentiment", "score", "rating", "stars", "intent"),
    *("emotion", "topic", "target", "is_duplicate"),
)
PROMPTS = ("prompt", "instruction", "question", "input", "inputs", "source", "src", "query")
COMPLETIONS = ("completion", "response", "output", "outputs", "answer", "target", "targets", "tgt")
SYSTEM = ("system", "system_prompt")
QUESTIONS = (
    *("question", "question_stem", "ctx", "startphrase", "goal", "sentence", "query", "prompt", "stem", "premise"),
)
COUPLES = (
    ("premise", "hypothesis"),
    *((f"{stem}{join}{a}", f"{stem}{join}{b}")
      for stem in ("sentence", "text", "question", "s") for join in ("", "_") for a, b in ("12", "ab")),
    ("claim", "evidence"),
    ("query", "passage"),
    ("query", "document"),
)  # fmt: skip
ASKED = tuple((first, second) for first in ("question", "prompt") for second in ("sentence", "answer", "response"))
READ = tuple(("question", second) for second in ("passage", "context", "paragraph"))
SUMMARIES = (
    *((long, "summary") for long in ("dialogue", "dialog", "document", "article", "text", "report")),
    ("article", "highlights"),
)


def _pairs(couples: Iterable[tuple[str, str]], labels: Names, *, yes_or_no: bool = False) -> Iterator[Form]:
    for a, b in couples:
        roles = {"text": (a,), "pair": (b,), "label": labels}
        yield Form(TaskKind.CLASSIFICATION, roles, closed=True, yes_or_no=yes_or_no)


FORMS = (
    Form(TaskKind.CLASSIFICATION, {"text": TEXTS, "label": LABELS}, {"pair": ("pair",)}),
    *_pairs(COUPLES, LABELS),
    # A question and its answer are texts to write, unless a column that is plainly a label stands beside them.
    *_pairs((*ASKED, *READ), ("label", "labels", "is_correct")),
    *_pairs(READ, ("answer",), yes_or_no=True),
    Form(TaskKind.TAGGING, {"words": ("words", "tokens"),
                            "tags": ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels", "ner", "pos")}),
    Form(TaskKind.EXTRACTION, {"question": ("question", "query"),
                               "context": ("context", "passage", "paragraph", "document"),
                               "answers": ("answers", "answer")}),
    Form(TaskKind.CHOICE, {"question": QUESTIONS, "choices": ("choices", "options", "endings", "candidates"),
                           "label": ("label", "answer", "answerkey", "answer_key", "gold", "correct", "answer_idx")},
         {"context": ("context", "passage", "article", "premise")}),
    Form(TaskKind.GENERATION, {"prompt": PROMPTS, "completion": COMPLETIONS},
         {"references": ("references",), "input": ("input", "context"), "system": SYSTEM}),
    Form(TaskKind.GENERATION, {"prompt": PROMPTS, "references": ("references", *COMPLETIONS)},
         {"input": ("input", "context"), "system": SYSTEM}),
    *(Form(TaskKind.GENERATION, {"prompt": (long,), "completion": (short,)}, closed=True) for long, short in SUMMARIES),
    Form(TaskKind.LANGUAGE, {"messages": ("messages", "conversations", "conversation", "chat")},
         {"system": SYSTEM, "tools": ("tools", "functions")}),
    Form(TaskKind.LANGUAGE, {"messages": ("prompt",), "completion": ("completion",)}, {"tools": ("tools",)},
         closed=True),
)  # fmt: skip
PLAIN_TEXT = Form(TaskKind.LANGUAGE, {"text": ("text", "content")})
"""Tried only where no other form fits: many files have a text that the other columns already hold."""

CHOICE_COLUMN = re.compile(r"(choice|ending|option|answer|sol|solution|op)_?(\d+|[a-z])|([a-z])")
"""The plain name of a column that has one of several choices."""


def choice_name(column: str) -> str:
    """The letter (small) or the number in the name of a column that has one of several choices; else the empty text."""
    match = CHOICE_COLUMN.fullmatch(plain(column))
    return (match[2] or match[3]) if match else ""


def in_order(names: Iterable[str]) -> list[str]:
    """Letters in order of the alphabet and numbers by their value, also at the end of columns of choices."""

    def place(name: str) -> tuple[int, str]:
        key = choice_name(name) or name
        return int(key) if key.isdecimal() else 0, key

    return sorted(names, key=place)


def plain(name: str) -> str:
    """A column's name in small letters, with _ for spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


class Found:
    """The columns of a file, and what stands in them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._shapes: dict[str, frozenset[str]] = {}

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Plain name -> columns."""
        names: dict[str, list[str]] = {}
        for column in self.rows.columns:
            names.setdefault(plain(column), []).append(column)
        return names

    def columns(self, role: str, names: Names) -> Sequence[str | Names]:
        """The columns that may have a role. That with the role's own name comes before all others."""
        fits: list[str | Names] = [
            column for name in names for column in self.names.get(name, ()) if self._may_be(role, name, column)
        ]
        if role == "choices":
            fits += self._choice_columns()
        return [role] if role in fits else fits

    def _choice_columns(self) -> Iterator[Names]:
        """The columns that have a choice each, by what stands before their letter or number."""
        series: dict[tuple[str, bool], list[str]] = {}
        for column in in_order(self.rows.columns):
            if not (match := CHOICE_COLUMN.fullmatch(plain(column))):
                continue
            found = series.setdefault((match[1] or "", choice_name(column).isdecimal()), [])
            # A later letter is one of a choice only after the letter before it: not `x` beside `a` to `d`.
            last = choice_name(found[-1]) if found else ""
            name, certain = choice_name(column), "h" if match[1] else "e"
            if name.isdecimal() or name <= certain or (last and ord(name) - ord(last) <= 1):
                found.append(column)
        yield from (tuple(columns) for columns in series.values() if len(columns) > 1)

    def _may_be(self, role: str, name: str, column: str) -> bool:
        shape = self.shape(column)
        if shape == {"objects"}:
            return role in ("messages", "answers", "tools", "completion")
        if name == role:
            return True  # where its values are not of the right type, the row's own message says so
        if role == "completion":
            return "text" in shape
        return bool(shape & SHAPES.get(role, TEXT)) or (not shape and role not in SHAPES)

    def shape(self, column: str) -> frozenset[str]:
        """The kinds of values in a column: text, boolean, number, list, texts, objects, object."""
        if column not in self._shapes:
            # One pass for all columns: where there are many rows, each pass reads a file.
            columns = self.rows.columns if column in self.rows.columns else (column,)
            found: dict[str, set[str]] = {name: set() for name in columns}
            for row in self.rows.rows:
                for name in columns:
                    if (value := optional_cell(row, name)) is not None:
                        found[name].add(_shape(value))
            self._shapes |= {name: frozenset(shapes) for name, shapes in found.items()}
        return self._shapes[column]


TEXT = frozenset({"text", "boolean", "number"})
SHAPES: Mapping[str, frozenset[str]] = {
    "label": TEXT | {"list", "texts"},
    "references": frozenset({"texts"}),
    "messages": frozenset({"objects"}),
    "answers": frozenset({"object", "objects"}),
    "choices": frozenset({"texts", "object"}),
    "words": frozenset({"texts"}),
    "tags": frozenset({"texts", "list"}),
    "tools": frozenset({"objects", "text", "list"}),
}


YES_OR_NO = ("true", "false", "yes", "no")


def _shape(value: Any) -> str:
    if isinstance(value, list):
        kinds = {_shape(part) for part in value}
        return {frozenset({"text"}): "texts", frozenset({"object"}): "objects"}.get(frozenset(kinds), "list")
    if isinstance(value, dict):
        return "object"
    if isinstance(value, bool) or (isinstance(value, str) and len(value) < 9 and value.strip().lower() in YES_OR_NO):
        return "boolean"
    return "number" if isinstance(value, int | float | Decimal) else "text"
