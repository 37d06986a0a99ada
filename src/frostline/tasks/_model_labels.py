"""The labels of a model that was trained before decide what a task's labels mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from frostline.core.errors import ConfigError, DataError, UnsupportedModel
from frostline.core.labels import IGNORED
from frostline.rows import NO_LABEL, TaskKind
from frostline.tasks._task import Example, Task

HEADS = {
    TaskKind.CLASSIFICATION: "ForSequenceClassification",
    TaskKind.MULTI_LABEL: "ForSequenceClassification",
    TaskKind.TAGGING: "ForTokenClassification",
}
"""The kinds of task with labels, and how the classes of their models end."""
SHOWN = 10


def with_model_labels(
    task: Task, config: Any, *, model_class: str, name: str, given: Sequence[str] | None = None
) -> Task:
    """The task with the labels of the model, in the model's order; the task as it is where the model has none.

    A model has labels of its own where its class has the head that the task needs. The task may have only some of
    them. Where the model has numbers for names (`LABEL_0`), whole numbers among the task's labels are taken as these
    numbers. Other labels are taken in the task's order, which a notice says.

    Args:
        task: the task as it was read.
        config: of the model.
        model_class: the name of the model's class.
        name: the model's name, for messages.
        given: the labels that the user gave, in order.

    Raises `DataError` for labels that the model does not have, `ConfigError` where the user gave another order, and
    `UnsupportedModel` where the model has one name twice.
    """
    if task.kind not in HEADS or not model_class.endswith(HEADS[task.kind]):
        return task
    own = tuple(str(label) for _, label in sorted(config.id2label.items()))
    if len(set(own)) < len(own):
        twice = next(label for label in own if own.count(label) > 1)
        raise UnsupportedModel(f"model '{name}': its config names two labels '{twice}': correct id2label there")
    if all(re.fullmatch(r"LABEL_\d+", label) for label in own) and not set(task.labels) <= set(own):
        return _by_number(task, own, name)
    _check_known(task, own, name)
    if given is not None and [label for label in own if label in given] != list(given):
        raise ConfigError(
            f"data.labels: the labels of model '{name}' are {_listed(own)}, in this order: leave data.labels out"
        )
    return _relabelled(task, {label: own.index(label) for label in task.labels}, own)


def _by_number(task: Task, own: tuple[str, ...], name: str) -> Task:
    numbers = tuple(str(index) for index in range(len(own)))
    if set(task.labels) <= set(numbers):
        return _relabelled(task, {label: int(label) for label in task.labels}, numbers)
    if len(task.labels) != len(own):
        raise DataError(
            f"model '{name}' has {len(own)} labels without names, and task '{task.name}' has {len(task.labels)}: "
            f"{_listed(task.labels)}: use data.labels with {len(own)} names, or a model without a head for labels"
        )
    notice = f"model '{name}' has no names for its labels: they are taken in the order {_listed(task.labels)}"
    return replace(task, notices=(*task.notices, notice))


def _check_known(task: Task, own: tuple[str, ...], name: str) -> None:
    if unknown := [label for label in task.labels if label not in own]:
        if set(unknown) <= set(NO_LABEL):
            raise DataError(
                f"data.labels: {_listed(unknown)} is no label of model '{name}', which has {_listed(own)}: remove it "
                "from data.labels, and its rows are left out"
            )
        raise DataError(
            f"task '{task.name}' has labels that model '{name}' does not know: {_listed(unknown)}; the model has "
            f"{_listed(own)}: use these names in the rows, or a model without a head for labels"
        )


def _relabelled(task: Task, places: Mapping[str, int], labels: tuple[str, ...]) -> Task:
    """The task with other `labels`; `places` says where each of its old ones is among them."""
    index = {old: places[label] for old, label in enumerate(task.labels)} | {IGNORED: IGNORED}

    def moved(example: Example) -> Example:
        return replace(
            example,
            label=None if example.label is None else index[example.label],
            labels=None if example.labels is None else tuple(sorted(index[label] for label in example.labels)),
            tags=tuple(index[tag] for tag in example.tags),
        )

    if labels == task.labels:
        return task
    train, evaluation = ([moved(example) for example in part] for part in (task.train, task.eval))
    return replace(task, train=train, eval=evaluation, labels=labels)


def _listed(labels: Sequence[str]) -> str:
    more = f", ... ({len(labels)} in all)" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more
