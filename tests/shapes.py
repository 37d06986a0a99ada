"""A small task of every shape: regression, several labels, tags, answers in a context, choices, translation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from frostline.tasks import METRICS, TASKS, Example, Task, TaskKind, TaskOptions

ANIMALS = ("cat", "dog", "bird", "fish", "horse", "mouse", "goat")
PLACES = ("Rome", "Oslo", "New York", "Lima")
LABELS = {
    TaskKind.MULTI_LABEL: ("big", "wet", "old"),
    TaskKind.TAGGING: ("O", "B-LOC", "I-LOC", "B-ANI"),
}


def _regression(name: str, i: int) -> Example:
    return Example(name, f"{i % 7} {ANIMALS[i % 7]}s in {PLACES[i % 4]}", value=i % 7 / 2 + 1)


def _several_labels(name: str, i: int) -> Example:
    own = [label for label in range(3) if i % (label + 2) == 0]
    text = "a" + "".join(f" {LABELS[TaskKind.MULTI_LABEL][label]}" for label in own) + f" {ANIMALS[i % 7]}"
    return Example(name, text, f"seen in {PLACES[i % 4]}" if i % 2 else None, labels=tuple(own))


def _tags(name: str, i: int) -> Example:
    place = PLACES[i % 4].split()
    words = ("Tom's", ANIMALS[i % 7], "went", "to", *place, "unexpectedly", *["again"] * (i % 3))
    tags = (0, 3, 0, 0, 1, *[2] * (len(place) - 1), -100 if i % 5 == 0 else 0, *[0] * (i % 3))
    return Example(name, words=words, tags=tags)


def _answers(name: str, i: int) -> Example:
    place, animal = PLACES[i % 4], ANIMALS[i % 7]
    before = "On Monday it rained and nobody went out. " * (i % 3)
    context = f"{before}The {animal} lives in {place}. Tom likes {ANIMALS[(i + 3) % 7]}s, not rain."
    start = context.index(place)
    answers = ((place, start), (f"in {place}", start - 3)) if i % 4 else ()
    question = f"Where does the {animal} live?" if answers else "Who likes snow?"
    return Example(name, question, context, answers=answers)


def _choices(name: str, i: int) -> Example:
    animal = ANIMALS[i % 7]
    wrong = [f"a {other}" for other in ANIMALS if other != animal][:2]
    label = i % 3
    return Example(
        name,
        f"Which is a {animal} and no other animal?",
        choices=(*wrong[:label], f"a {animal}", *wrong[label:]),
        label=label,
    )


def _translation(name: str, i: int) -> Example:
    animal, place = ANIMALS[i % 7], PLACES[i % 4]
    target = f"{place} hat {i % 5} {animal}"
    return Example(name, f"{i % 5} {animal} in {place}", target=target, references=(target,))


EXAMPLES: dict[TaskKind, Callable[[str, int], Example]] = {
    TaskKind.REGRESSION: _regression,
    TaskKind.MULTI_LABEL: _several_labels,
    TaskKind.TAGGING: _tags,
    TaskKind.EXTRACTION: _answers,
    TaskKind.CHOICE: _choices,
    TaskKind.GENERATION: _translation,
}


def shape(kind: TaskKind, train: int = 24, evaluation: int = 10, metric: str | None = None) -> Task:
    """A task of this kind."""
    make = EXAMPLES[kind]
    return Task(
        f"small-{kind}",
        kind,
        [make(f"train:{i}", i) for i in range(train)],
        [make(f"eval:{i}", i) for i in range(100, 100 + evaluation)],
        metric or METRICS[kind][0],
        labels=LABELS.get(kind, ()),
        source="made here",
        generate_rows=4,
    )


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks under the names `small-regression`, `small-multi-label`, ..."""

    def read(kind: TaskKind) -> Callable[[TaskOptions], Task]:
        return lambda options: shape(kind)

    for kind in EXAMPLES:
        monkeypatch.setitem(TASKS._entries, f"small-{kind}", read(kind))
