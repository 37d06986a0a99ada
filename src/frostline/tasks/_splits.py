"""Which examples are held out for evaluation, and which are drawn."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from frostline.core.errors import DataError
from frostline.core.seeding import derive_seed
from frostline.rows import TaskKind
from frostline.tasks._task import Example

T = TypeVar("T")


def content_of(example: Example) -> Hashable:
    """What a model reads of an example: equal for two rows that repeat each other, whatever their labels."""
    return (example.text, example.pair, example.messages, example.words, example.choices)


def held_count(rows: int, share: float, origin: str) -> int:
    """How many of `rows` are held out. Raises `DataError`, with their `origin`, where no row would remain."""
    count = max(1, round(share * rows))
    if count >= rows:
        raise DataError(
            f"{origin}: too few rows ({rows}) to hold out a share of {share:g} for evaluation: use data.eval=FILE"
        )
    return count


def hold_out(
    examples: Sequence[Example], kind: TaskKind, labels: Sequence[str], share: float, seed: int, origin: str
) -> tuple[list[Example], list[Example], list[str]]:
    """(Remaining examples, held-out examples, notices); both in their order.

    Examples with the same content stay on one side. Of each class the same share is held out, and a class of which
    nothing would remain for training keeps its examples there.

    Args:
        examples: all examples. Those that are held out are renamed from `train:n` to `eval:n`.
        kind: the kind of task; a classification is held out class by class.
        labels: the label names, for messages.
        share: which share of the examples is held out.
        seed: draws the held-out examples.
        origin: where they are from, for messages.

    Raises `DataError` when no example would remain.
    """
    count = held_count(len(examples), share, origin)
    together = defaultdict(list)
    for i, example in enumerate(examples):
        together[content_of(example)].append(i)
    groups = list(together.values())
    # Where few contents make up all rows (a prompt that never changes), too much would be held out with any of them.
    apart_by_content = min(map(len, groups)) <= min(2 * count, len(examples) // 2)
    if not apart_by_content:
        groups = [[i] for i in range(len(examples))]
    strata = defaultdict(list)
    for group in groups:
        strata[examples[group[0]].label if kind is TaskKind.CLASSIFICATION else None].append(group)
    draw = random.Random(derive_seed(seed, "held out"))
    held: list[list[int]] = []
    for groups_of_class, quota in zip(strata.values(), _quotas(list(strata.values()), count), strict=True):
        room = quota
        for group in draw.sample(groups_of_class, len(groups_of_class)):
            if len(group) <= room:
                held.append(group)
                room -= len(group)
    if not held:
        held = [min(groups, key=len)]
    kept = _give_back(examples, held)
    chosen = {i for group in held for i in group}
    remaining = [example for i, example in enumerate(examples) if i not in chosen]
    apart = [replace(examples[i], id=examples[i].id.replace("train", "eval")) for i in sorted(chosen)]
    lost = sorted(set().union(*map(_classes, apart)) - set().union(*map(_classes, remaining)))
    evenly = ", the same share of every class" if kind is TaskKind.CLASSIFICATION else ""
    notices = [f"held out for evaluation: {len(apart)} of {len(examples)} rows{evenly} (data.eval=FILE gives others)"]
    if repeats := len(examples) - len(together):
        where = "on one side of the split" if apart_by_content else "on both sides of the split: they are too many"
        notices.append(f"{repeats} rows repeat the content of another row; repeated rows are {where}")
    if kept:
        notices.append(f"too rare to be held out, all rows are for training: {_named(kept, labels)}")
    if lost:
        notices.append(f"held out, and not in the training rows: {_named(lost, labels)}")
    return remaining, apart, notices


def _quotas(strata: Sequence[Sequence[Sequence[int]]], count: int) -> list[int]:
    """How many examples of each stratum are held out, `count` in all, by largest remainders."""
    sizes = [sum(map(len, stratum)) for stratum in strata]
    exact = [count * size / sum(sizes) for size in sizes]
    quotas = [int(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in order[: count - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _give_back(examples: Sequence[Example], held: list[list[int]]) -> list[int]:
    """Take groups out of `held`, in place, until every class has training rows. The classes that it was done for."""
    total = Counter(label for example in examples for label in _classes(example))
    out = Counter(label for group in held for i in group for label in _classes(examples[i]))
    kept: set[int] = set()
    for group in list(held):
        here = Counter(label for i in group for label in _classes(examples[i]))
        if (lost := {label for label in here if out[label] == total[label]}) and len(held) > 1:
            held.remove(group)
            out -= here
            kept |= lost
    return sorted(kept)


def _classes(example: Example) -> set[int]:
    """The classes that an example has. The right one of several choices is none: it is another text in every row."""
    own = () if example.label is None or example.choices else (example.label,)
    return {label for label in (*own, *(example.labels or ()), *example.tags) if label >= 0}


def _named(classes: Sequence[int], labels: Sequence[str]) -> str:
    return ", ".join(f"'{labels[i]}'" for i in classes[:5]) + (" and others" if len(classes) > 5 else "")


def draw_rows(rows: list[T], most: int | None, seed: int, draw: str) -> list[T]:
    """Draw at most `most` rows by `seed`, and keep their order.

    Args:
        rows: all rows.
        most: how many; None takes all.
        seed: the user's seed.
        draw: names the draw ("train rows", "eval rows", "held out"): each has its own random numbers.
    """
    if most is None or most >= len(rows):
        return rows
    generator = random.Random(derive_seed(seed, draw))
    return [rows[i] for i in sorted(generator.sample(range(len(rows)), most))]
