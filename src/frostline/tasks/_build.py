"""Make a task from rows: read them as examples, split them, draw some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from frostline.core.errors import ConfigError
from frostline.tasks._choices import label_form
from frostline.tasks._examples import make_examples
from frostline.tasks._labels import label_names, label_text, labelled, row_labels, spelling_notices
from frostline.tasks._options import TaskOptions
from frostline.tasks._reading import Reading, reading_notices
from frostline.tasks._rows import Row, Rows
from frostline.tasks._splits import content_of, draw_rows, hold_out
from frostline.tasks._task import METRICS, Example, Scorer, Task, TaskKind, score_texts

Numbered = Sequence[tuple[int, Row]]
ONE_LABEL = (TaskKind.CLASSIFICATION, TaskKind.CHOICE)


def task_of_rows(
    name: str, train: Rows, evaluation: Rows | None, reading: Reading, options: TaskOptions, source: str
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

    Raises `DataError` with the place of the first bad row, also when that row would not be drawn.
    """
    splits = [train] if evaluation is None else [train, evaluation]
    column = reading.optional("label")
    notices: list[str] = []
    kept: list[Numbered] = []
    for rows in splits:
        found, left_out = (
            labelled(rows, column, options)
            if column is not None and reading.kind in ONE_LABEL
            else (list(enumerate(rows.rows)), [])
        )
        kept.append(found)
        notices += left_out
    all_rows = [row for rows in kept for _, row in rows]
    if reading.kind is TaskKind.CHOICE and not options.labels:
        reading = replace(reading, label_form=label_form(all_rows, reading, train.origin))
    elif reading.kind is TaskKind.MULTI_LABEL and _are_flags(all_rows, reading.column("label")):
        reading = replace(reading, label_form="flags")
    labels = options.labels or _labels_of([row for _, row in kept[0]], reading)
    if reading.kind is TaskKind.CLASSIFICATION and column is not None:
        notices += spelling_notices(all_rows, column)
    task = _task(name, kept, reading, options, labels, source, train.origin)
    if reading.kind is TaskKind.CHOICE:
        labels = ()
    elif options.labels and reading.kind not in (TaskKind.CLASSIFICATION, TaskKind.MULTI_LABEL, TaskKind.TAGGING):
        raise ConfigError(f"data.labels: a {reading.kind} task has no labels: leave it out")
    outcome = _outcome(reading, labels, [*task.train, *task.eval])
    if evaluation is not None and "eval_share" in options.model_fields_set:
        notices.append("data.eval_share is not used: there are evaluation rows")
    return replace(task, labels=labels, notices=(*reading_notices(reading, splits, outcome), *notices, *task.notices))


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
    """Make a built-in task from its training and evaluation rows.

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
    rows = [list(enumerate(part.rows)) for part in (train, evaluation)]
    task = _task(name, rows, reading, options, labels or (), source, train.origin)
    return replace(task, metric=main_metric(reading.kind, options, metric), score=score)


def _task(
    name: str,
    splits: Sequence[Numbered],
    reading: Reading,
    options: TaskOptions,
    labels: tuple[str, ...],
    source: str,
    origin: str,
) -> Task:
    """Row n of a split, counted from 0 in the source, has the id `train:n` or `eval:n`, also when only some are drawn
    or a training row is held out."""
    examples = [
        make_examples(((f"{split}:{i}", row) for i, row in rows), reading, labels)
        for split, rows in zip(("train", "eval"), splits, strict=False)
    ]
    train, notices = examples[0], list[str]()
    if len(examples) > 1:
        evaluation = examples[1]
        seen = {content_of(example) for example in train}
        if repeated := sum(content_of(example) in seen for example in evaluation):
            notices.append(
                f"{repeated} of {len(evaluation)} evaluation rows have the content of a training row: scores on them "
                "do not show how the model does on new rows"
            )
    else:
        train, evaluation, notices = hold_out(train, reading.kind, labels, options.eval_share, options.seed, origin)
    return Task(
        name=name,
        kind=reading.kind,
        train=draw_rows(train, options.max_train_rows, options.seed, "train rows"),
        eval=draw_rows(evaluation, options.max_eval_rows, options.seed, "eval rows"),
        metric=main_metric(reading.kind, options),
        labels=labels,
        source=source,
        train_on_prompt=options.train_on_prompt,
        generate_rows=options.generate_rows,
        notices=tuple(notices),
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
        return label_names(tag for row in rows for tag in row_labels(row, reading.column("tags")) if tag != "-100")
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


def _outcome(reading: Reading, labels: Sequence[str], examples: Sequence[Example]) -> str:
    """What is predicted, in short."""
    if reading.kind is TaskKind.REGRESSION:
        values = [example.value for example in examples if example.value is not None]
        return f"regression, {min(values):g} to {max(values):g}"
    words = {TaskKind.CLASSIFICATION: "classes", TaskKind.MULTI_LABEL: "labels", TaskKind.TAGGING: "tags"}
    return f"{len(labels)} {words[reading.kind]}" if reading.kind in words else ""
