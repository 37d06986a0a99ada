"""Make a task from rows: read them as examples, split them, draw some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from frostline.core.errors import ConfigError
from frostline.rows import (
    NOT_COUNTED,
    Reading,
    Row,
    Rows,
    TaskKind,
    TaskOptions,
    check_list_marks,
    label_form,
    label_names,
    label_text,
    labelled,
    reading_notices,
    row_labels,
    some_of,
    spelling_notices,
    store,
    values_of,
)
from frostline.tasks._examples import make_examples
from frostline.tasks._splits import draw_rows, hold_out, repeated
from frostline.tasks._stored import EXAMPLES
from frostline.tasks._task import METRICS, Example, Scorer, Task, score_texts

WITH_NAMES = (TaskKind.CLASSIFICATION, TaskKind.MULTI_LABEL, TaskKind.TAGGING)
ONE_LABEL = (TaskKind.CLASSIFICATION, TaskKind.CHOICE)


def task_of_rows(
    name: str,
    train: Rows,
    evaluation: Rows | None,
    reading: Reading,
    options: TaskOptions,
    source: str,
    place: Path | None = None,
) -> Task:
    """Make a task from a user's own rows, with notices that say how they were read.

    Rows without a label are left out. Without evaluation rows, a seeded share of the training rows is held out.

    Args:
        name: the task's name.
        train: training rows.
        evaluation: evaluation rows; None holds some training rows out.
        reading: how rows become examples.
        options: what the user wrote.
        source: where the rows are from: a path or a hub id.
        place: a folder for the examples, where they are too many for memory; None: they are lists.

    Raises `DataError` with the place of the first bad row, also when that row would not be drawn.
    """
    splits = [train] if evaluation is None else [train, evaluation]
    column = reading.optional("label")
    notices: list[str] = []
    kept: list[Sequence[int]] = []
    for rows in splits:
        found, left_out = (
            labelled(rows, column, options)
            if column is not None and reading.kind in ONE_LABEL
            else (range(len(rows.rows)), [])
        )
        kept.append(found)
        notices += left_out
    some = [_some(rows, found) for rows, found in zip(splits, kept, strict=True)]
    all_rows: Sequence[Row] = some[0] if evaluation is None else [*some[0], *some[1]]
    if reading.kind in (TaskKind.MULTI_LABEL, TaskKind.TAGGING):
        tags = reading.kind is TaskKind.TAGGING
        check_list_marks(all_rows, reading.column("tags" if tags else "label"), options, tags=tags)
    if reading.kind is TaskKind.CHOICE and not options.labels:
        reading = replace(reading, label_form=label_form(all_rows, reading, train.origin))
    elif reading.kind is TaskKind.MULTI_LABEL and _are_flags(all_rows, reading.column("label")):
        reading = replace(reading, label_form="flags")
    labels = options.labels or _labels_of(some[0], reading)
    if reading.kind is TaskKind.CLASSIFICATION and column is not None:
        notices += spelling_notices(all_rows, column)
    examples = _examples("train", kept[0], some[0], reading, labels, place)
    if evaluation is not None:
        eval_examples = _examples("eval", kept[1], some[1], reading, labels, place)
        notices += _repeated(examples, eval_examples)
        if options.eval_share != TaskOptions().eval_share:
            notices.append("data.eval_share is not used: there are evaluation rows")
    else:
        examples, eval_examples, held_out = hold_out(
            examples, reading.kind, labels, options.eval_share, options.seed, train.origin, _file(place, "eval")
        )
        notices += held_out
    if options.labels and reading.kind not in (*WITH_NAMES, TaskKind.CHOICE):
        raise ConfigError(f"data.labels: a {reading.kind} task has no labels: leave it out")
    names = labels if reading.kind in WITH_NAMES else ()
    task = _task(name, examples, eval_examples, reading.kind, options, names, source)
    outcome = _outcome(reading, names, (examples, eval_examples))
    return replace(task, notices=(*reading_notices(reading, splits, outcome), *notices))


def build_task(
    name: str,
    train: Rows,
    evaluation: Rows,
    reading: Reading,
    options: TaskOptions,
    *,
    source: str,
    labels: tuple[str, ...] | None = None,
    metric: str | None = None,
    score: Scorer = score_texts,
) -> Task:
    """Make a built-in task, which has no notices, from its training and evaluation rows.

    Args:
        name: the task's name.
        train: training rows.
        evaluation: evaluation rows.
        reading: how rows become examples.
        options: what the user wrote.
        source: where the rows are from: a path or a hub id.
        labels: the label names in order, where the kind of task has labels.
        metric: the main metric; None is the usual one of the kind of task.
        score: scores generated texts.

    Raises `DataError` with the place of the first bad row, also when that row would not be drawn, and `ConfigError` for
    a main metric that the kind of task does not have.
    """
    train_examples, eval_examples = (
        _examples(split, range(len(part.rows)), part.rows, reading, labels or (), None)
        for split, part in (("train", train), ("eval", evaluation))
    )
    task = _task(name, train_examples, eval_examples, reading.kind, options, labels or (), source)
    return replace(task, metric=main_metric(reading.kind, options, metric), score=score)


def _examples(
    split: str,
    places: Sequence[int],
    rows: Sequence[Row],
    reading: Reading,
    labels: tuple[str, ...],
    folder: Path | None,
) -> Sequence[Example]:
    """Row n of a split, counted from 0 in the source, has the id `train:n` or `eval:n`, also when only some are drawn
    or a training row is held out. `places` are those of `rows` in the source."""
    named = ((f"{split}:{i}", row) for i, row in zip(places, rows, strict=True))
    return store(make_examples(named, reading, labels), EXAMPLES, _file(folder, split))


def _file(folder: Path | None, split: str) -> Path | None:
    return None if folder is None else folder / f"{split}.examples"


def _some(rows: Rows, places: Sequence[int]) -> Sequence[Row]:
    return rows.rows if len(places) == len(rows.rows) else some_of(rows.rows, places)


def _repeated(train: Sequence[Example], evaluation: Sequence[Example]) -> Iterator[str]:
    if count := repeated(train, evaluation):
        yield (
            f"{count} of {len(evaluation)} evaluation rows have the content of a training row: scores on them do not "
            "show how the model does on new rows"
        )


def _task(
    name: str,
    train: Sequence[Example],
    evaluation: Sequence[Example],
    kind: TaskKind,
    options: TaskOptions,
    labels: tuple[str, ...],
    source: str,
) -> Task:
    return Task(
        name=name,
        kind=kind,
        train=draw_rows(train, options.max_train_rows, options.seed, "train rows"),
        eval=draw_rows(evaluation, options.max_eval_rows, options.seed, "eval rows"),
        metric=main_metric(kind, options),
        labels=labels,
        source=source,
        train_on_prompt=options.train_on_prompt,
        generate_rows=options.generate_rows,
    )


def main_metric(kind: TaskKind, options: TaskOptions, usual: str | None = None) -> str:
    """The main metric: that of the options, else `usual`, else the first of the kind of task.

    Raises `ConfigError` for one that the kind of task does not have, or that needs texts where none are generated.
    """
    asked, known = options.metric, METRICS[kind]
    if kind is TaskKind.GENERATION and not options.generate_rows:
        known, usual = ("loss", "perplexity"), None
    if asked is not None and asked not in known:
        raise ConfigError(f"data.metric: no metric '{asked}' in this {kind} task: use one of {', '.join(known)}")
    return asked or usual or known[0]


def _labels_of(rows: Sequence[Row], reading: Reading) -> tuple[str, ...]:
    if reading.kind is TaskKind.CLASSIFICATION:
        return label_names(label_text(row, reading.column("label")) for row in rows)
    if reading.kind is TaskKind.TAGGING:
        return label_names(tag for row in rows for tag in row_labels(row, reading.column("tags")) if tag != NOT_COUNTED)
    if reading.label_form == "flags":
        return tuple(map(str, range(len(row_labels(rows[0], reading.column("label"))))))
    if reading.kind is TaskKind.MULTI_LABEL:
        return label_names(label for row in rows for label in row_labels(row, reading.column("label")))
    return ()


def _are_flags(rows: Iterable[Row], column: str) -> bool:
    """Whether lists of labels are lists of zeros and ones, one for each label: some list then has one of them twice."""
    lists = [row_labels(row, column) for row in rows]
    return (
        len({len(labels) for labels in lists}) == 1
        and {label for labels in lists for label in labels} <= {"0", "1", "true", "false"}
        and any(len(set(labels)) < len(labels) for labels in lists)
    )


def _outcome(reading: Reading, labels: Sequence[str], splits: Sequence[Sequence[Example]]) -> str:
    """What is predicted, in short."""
    if reading.kind is TaskKind.REGRESSION:
        every = (value for part in splits for value in values_of(part, "value", lambda example: example.value))
        values = [value for value in every if value is not None]
        return f"regression, {min(values):g} to {max(values):g}"
    words = {
        TaskKind.CLASSIFICATION: ("class", "classes"),
        TaskKind.MULTI_LABEL: ("label", "labels"),
        TaskKind.TAGGING: ("tag", "tags"),
    }
    return f"{len(labels)} {words[reading.kind][len(labels) != 1]}" if reading.kind in words else ""
