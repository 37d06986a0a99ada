"""Make a task from rows: split them, draw some, read them as examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from frostline.core.errors import ConfigError, DataError
from frostline.core.seeding import derive_seed
from frostline.tasks._options import TaskOptions
from frostline.tasks._reading import Reading, label_names, make_examples
from frostline.tasks._rows import Rows
from frostline.tasks._task import METRICS, Scorer, Task, TaskKind, score_texts

T = TypeVar("T")


def build_task(
    name: str,
    train: Rows,
    evaluation: Rows | None,
    reading: Reading,
    options: TaskOptions,
    *,
    source: str,
    labels: tuple[str, ...] | None = None,
    metric: str | None = None,
    score: Scorer = score_texts,
) -> Task:
    """Make a task from training rows and, where there are any, evaluation rows.

    Without evaluation rows, a seeded share of the training rows is held out. Row n of a split, counted from 0 in the
    source, has the id `train:n` or `eval:n`, also when only some rows are drawn.

    Args:
        name: the task's name.
        train: training rows.
        evaluation: evaluation rows; None holds some training rows out.
        reading: how rows become examples.
        options: what the user wrote.
        source: where the rows are from: a path or a hub id.
        labels: the label names in order; None reads them from the training rows.
        metric: the main metric; None is the usual one of the kind of task.
        score: scores generated texts.

    Raises `DataError` with the place of the first bad row, also when that row would not be drawn, and `ConfigError` for
    a main metric that the kind of task does not have.
    """
    if labels is None and reading.kind is TaskKind.CLASSIFICATION:
        labels = label_names(train.rows, reading.columns["label"])
    if evaluation is not None:
        train_rows, eval_rows = list(enumerate(train.rows)), list(enumerate(evaluation.rows))
    else:
        train_rows, eval_rows = hold_out(list(enumerate(train.rows)), options.eval_share, options.seed, train.origin)
    train_examples = make_examples(((f"train:{i}", row) for i, row in train_rows), reading, labels or ())
    eval_examples = make_examples(((f"eval:{i}", row) for i, row in eval_rows), reading, labels or ())
    return Task(
        name=name,
        kind=reading.kind,
        train=draw_rows(train_examples, options.max_train_rows, options.seed, "train"),
        eval=draw_rows(eval_examples, options.max_eval_rows, options.seed, "eval"),
        metric=main_metric(reading.kind, options, metric),
        labels=labels or (),
        source=source,
        train_on_prompt=options.train_on_prompt,
        generate_rows=options.generate_rows,
        score=score,
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


def hold_out(rows: Sequence[T], share: float, seed: int, origin: str) -> tuple[list[T], list[T]]:
    """(Remaining rows, held-out rows), both in their order.

    Args:
        rows: all rows.
        share: which share of them is held out.
        seed: draws the held-out rows.
        origin: where the rows are from, for messages.

    Raises `DataError` when no row would remain.
    """
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        raise DataError(
            f"{origin}: too few rows ({len(rows)}) to hold out a share of {share:g} for evaluation: use data.eval=FILE"
        )
    held = set(random.Random(derive_seed(seed, "held out")).sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i not in held], [row for i, row in enumerate(rows) if i in held]


def draw_rows(rows: list[T], most: int | None, seed: int, split: str) -> list[T]:
    """Draw at most `most` rows of a split ("train", "eval") by `seed`, and keep their order."""
    if most is None or most >= len(rows):
        return rows
    draw = random.Random(derive_seed(seed, f"{split} rows"))
    return [rows[i] for i in sorted(draw.sample(range(len(rows)), most))]
