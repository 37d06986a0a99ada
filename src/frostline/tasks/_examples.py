"""Make examples from rows: one maker for each kind of task, and a check of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from frostline.core.documents import parse_json
from frostline.core.errors import DataError
from frostline.core.labels import IGNORED
from frostline.rows import (
    NOT_COUNTED,
    Reading,
    Row,
    TaskKind,
    as_text,
    cell,
    choices_of,
    entries,
    kind_of,
    label_index,
    label_text,
    number,
    optional_cell,
    optional_text,
    right_choice,
    row_labels,
    text,
    texts,
)
from frostline.tasks._task import Example, Message

Labels = tuple[str, ...]
BETWEEN = "\n\n"
"""Follows each part of a prompt that is made of several columns."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Who speaks in a row of ShareGPT, in the words of chat templates."""


def make_examples(rows: Iterable[tuple[str, Row]], reading: Reading, labels: Labels) -> Iterator[Example]:
    """An example for every (id, row). Raises `DataError` with the place of the first bad row."""
    make = _MAKERS["messages" if "messages" in reading.columns else reading.kind]
    return (make(name, row, reading, labels) for name, row in rows)


def _pair(row: Row, reading: Reading) -> tuple[str, str | None]:
    return text(row, reading.column("text")), optional_text(row, reading.optional("pair"))


def _classification(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    column = reading.column("label")
    index = label_index(label_text(row, column), row, column, labels)
    return Example(name, *_pair(row, reading), label=index)


def _regression(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    column = reading.column("label")
    value = number(cell(row, column))
    if value is None:
        found = cell(row, column)
        shown = repr(found) if isinstance(found, str | float) else kind_of(found)
        raise DataError(f"{row.where}: column '{column}' must be a number, found {shown}: correct or remove the row")
    return Example(name, *_pair(row, reading), value=value)


def _multi_label(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    column = reading.column("label")
    names = row_labels(row, column)
    if reading.label_form == "flags":
        if len(names) != len(labels) or not {*names} <= {"0", "1", "true", "false"}:
            raise DataError(f"{row.where}: column '{column}' must be a list of {len(labels)} zeros and ones")
        found = [i for i, flag in enumerate(names) if flag in ("1", "true")]
    else:
        found = sorted({label_index(label, row, column, labels) for label in names})
    return Example(name, *_pair(row, reading), labels=tuple(found))


def _tagging(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    words, column = texts(row, reading.column("words")), reading.column("tags")
    tags = row_labels(row, column)
    if len(words) != len(tags):
        raise DataError(f"{row.where}: {len(words)} words, but {len(tags)} tags: give each word one tag")
    indices = (IGNORED if tag == NOT_COUNTED else label_index(tag, row, column, labels) for tag in tags)
    return Example(name, words=words, tags=tuple(indices))


def _choice(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    parts = [optional_text(row, reading.optional("context")), text(row, reading.column("question"))]
    choices = choices_of(row, reading.columns["choices"])
    label = right_choice(row, reading, choices, labels)
    return Example(name, text="\n".join(filter(None, parts)), choices=choices.texts, label=label)


def _extraction(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    context = text(row, reading.column("context"))
    found = _answers(row, reading.column("answers"))
    answers = dict.fromkeys(_placed(answer, start, context, row) for answer, start in found)
    return Example(name, text=text(row, reading.column("question")), pair=context, answers=tuple(answers))


def _answers(row: Row, column: str) -> list[tuple[str, Any]]:
    """(Text, start or None) of each answer; none where the value is empty."""
    value = optional_cell(row, column)
    parts = value if isinstance(value, list) else [] if value is None else [value]
    found: list[tuple[str, Any]] = []
    for part in parts:
        given = part if isinstance(part, dict) else {"text": part}
        answer, starts = given.get("text"), given.get("answer_start", given.get("start"))
        many = answer if isinstance(answer, list) else [answer]
        each = starts if isinstance(starts, list) else [starts] * len(many)
        if len(each) != len(many):
            raise DataError(f"{row.where}: column '{column}' has {len(many)} texts, but {len(each)} starts")
        found += [(as_text(one, row, column), start) for one, start in zip(many, each, strict=True)]
    return found


def _placed(answer: str, start: Any, context: str, row: Row) -> tuple[str, int]:
    if start is None or start == -1:
        if context.count(answer) != 1:
            raise DataError(
                f"{row.where}: the answer '{_short(answer)}' is {context.count(answer)} times in the context: give "
                "where it starts (answer_start), in characters"
            )
        start = context.index(answer)
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(
            f"{row.where}: the start of the answer '{_short(answer)}' (answer_start) must be a whole number, found "
            f"{kind_of(start) if not isinstance(start, float) else start}"
        )
    if not context.startswith(answer, max(start, 0)):
        raise DataError(
            f"{row.where}: the answer '{_short(answer)}' does not start at character {start} of the context"
        )
    return answer, start


def _short(words: str) -> str:
    return words if len(words) <= 40 else f"{words[:40]}..."


def _generation(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    columns = reading.columns
    completion = (text(row, reading.column("completion")),) if "completion" in columns else ()
    references = texts(row, reading.column("references")) if "references" in columns else completion
    prompt = text(row, reading.column("prompt"))
    if "system" in columns or "input" in columns:
        parts = (optional_text(row, reading.optional("system")), prompt, optional_text(row, reading.optional("input")))
        prompt = "".join(part + BETWEEN for part in parts if part)
    return Example(
        name,
        text=reading.prompt.format(prompt),
        target=(*completion, *references)[0],
        references=references,
        group=text(row, reading.column("group")) if "group" in columns else "",
    )


def _plain(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    return Example(name, text=text(row, reading.column("text")))


def _chat(name: str, row: Row, reading: Reading, labels: Labels) -> Example:
    column = reading.column("messages")
    messages = [_message(turn, i, row, column) for i, turn in enumerate(entries(row, column))]
    if "completion" in reading.columns:
        after = reading.column("completion")
        if any(message.role == "assistant" for message in messages):
            raise DataError(
                f"{row.where}: column '{column}' has an answer too: put all turns into the column 'messages'"
            )
        messages += [_message(turn, i, row, after) for i, turn in enumerate(entries(row, after))]
    if (system := optional_text(row, reading.optional("system"))) is not None:
        if messages[0].role == "system" and messages[0].content != system:
            raise DataError(f"{row.where}: column '{column}' has another system message than the column for it")
        messages = [Message("system", system), *messages[messages[0].role == "system" :]]
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{row.where}: column '{column}' needs at least one message with the role 'assistant'")
    return Example(name, messages=tuple(messages), tools=_tools(row, reading.optional("tools")))


def _tools(row: Row, column: str | None) -> tuple[Mapping[str, Any], ...]:
    """The descriptions of the tools in a column, which may be a list or its JSON text."""
    value = optional_cell(row, column)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise DataError(f"{row.where}: column '{column}' is no list of tools: give JSON objects") from None
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{row.where}: column '{column}' must be a list of objects, one for each tool")
    return tuple(value)


def _message(turn: object, index: int, row: Row, column: str) -> Message:
    place = f"{column}[{index}]"
    if not isinstance(turn, dict):
        raise DataError(f"{row.where}: {place} must be an object with role and content, found {kind_of(turn)}")
    who, what = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    for key, value in turn.items():
        if key not in (who, what) and value is not None:
            raise DataError(f"{row.where}: {place} has the key '{key}': a message must have only {who} and {what}")
    content = turn.get(what)
    if isinstance(content, list):
        content = "".join(_part(part, row, f"{place}.{what}[{i}]") for i, part in enumerate(content))
    role = as_text(turn.get(who), row, f"{place}.{who}")
    return Message(ROLES.get(role, role), as_text(content, row, f"{place}.{what}"))


def _part(part: object, row: Row, place: str) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, dict) and part.get("type") == "text":
        return as_text(part.get("text"), row, f"{place}.text")
    kind = part.get("type") if isinstance(part, dict) else kind_of(part)
    raise DataError(f"{row.where}: {place} is '{kind}': only parts of the type 'text' can be used, remove the others")


_MAKERS: Mapping[str, Callable[[str, Row, Reading, Labels], Example]] = {
    TaskKind.CLASSIFICATION: _classification,
    TaskKind.REGRESSION: _regression,
    TaskKind.MULTI_LABEL: _multi_label,
    TaskKind.TAGGING: _tagging,
    TaskKind.EXTRACTION: _extraction,
    TaskKind.CHOICE: _choice,
    TaskKind.GENERATION: _generation,
    TaskKind.LANGUAGE: _plain,
    "messages": _chat,
}
