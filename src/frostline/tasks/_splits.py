"""Which examples are held out for evaluation, and which are drawn."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from frostline.core.errors import DataError
from frostline.core.seeding import derive_seed
from frostline.rows import TaskKind, some_of, store
from frostline.tasks._stored import EXAMPLES
from frostline.tasks._task import Example

T = TypeVar("T")


def content_of(example: Example) -> bytes:
    """A hash of what a model reads of an example: equal for two rows that repeat each other, whatever their labels."""
    read = (example.text, example.pair, example.messages, example.words, example.choices)
    return hashlib.blake2b(repr(read).encode(), digest_size=16).digest()


class Groups:
    """The examples with equal contents, by the hashes of all examples: in the order of their first ones.

    They are numbers in arrays, since there may be millions.
    """

    def __init__(self, hashes: bytes) -> None:
        halves = np.frombuffer(hashes, dtype="<u8").reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # it is stable, so that those of a group stay in order
        new = np.ones(len(order), dtype=bool)
        new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
        begins = np.flatnonzero(new)
        by_first = np.argsort(order[begins])
        self._order, self._begins = order, begins[by_first]
        self.sizes = np.diff(np.append(begins, len(order)))[by_first]
        self.first = order[self._begins]

    @classmethod
    def of_one_each(cls, count: int) -> Groups:
        """Every example in a group of its own."""
        found = cls.__new__(cls)
        found._order = found._begins = found.first = np.arange(count)
        found.sizes = np.ones(count, dtype=np.int64)
        return found

    def __getitem__(self, group: int) -> list[int]:
        begin = self._begins[group]
        found: list[int] = self._order[begin : begin + self.sizes[group]].tolist()
        return found


def held_count(rows: int, share: float, origin: str) -> int:
    """How many of `rows` are held out. Raises `DataError`, with their `origin`, where no row would remain."""
    count = max(1, round(share * rows))
    if count >= rows:
        raise DataError(
            f"{origin}: too few rows ({rows}) to hold out a share of {share:g} for evaluation: use data.eval=FILE"
        )
    return count


def hold_out(
    examples: Sequence[Example],
    kind: TaskKind,
    labels: Sequence[str],
    share: float,
    seed: int,
    origin: str,
    place: Path | None = None,
) -> tuple[Sequence[Example], Sequence[Example], list[str]]:
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
        place: the file for the held-out examples; None: they are a list.

    Raises `DataError` when no example would remain.
    """
    total = len(examples)
    count = held_count(total, share, origin)
    hashes = bytearray()
    classes: list[frozenset[int]] = []
    strata_of: list[int | None] = []
    known: dict[frozenset[int], frozenset[int]] = {}
    for example in examples:
        hashes += content_of(example)
        own = _classes(example)
        classes.append(known.setdefault(own, own))
        strata_of.append(example.label if kind is TaskKind.CLASSIFICATION else None)
    groups = Groups(bytes(hashes))
    repeats = total - len(groups.sizes)
    # Where few contents make up all rows (a prompt that never changes), too much would be held out with any of them.
    apart_by_content = bool(groups.sizes.min() <= min(2 * count, total // 2))
    if not apart_by_content:
        groups = Groups.of_one_each(total)
    strata: dict[int | None, array[int]] = {}
    for number, first in enumerate(groups.first.tolist()):
        strata.setdefault(strata_of[first], array("q")).append(number)
    sizes = [int(groups.sizes[stratum].sum()) for stratum in strata.values()]
    draw = random.Random(derive_seed(seed, "held out"))
    held: list[list[int]] = []
    for stratum, quota in zip(strata.values(), _quotas(sizes, count), strict=True):
        room = quota
        for number in shuffled(draw, stratum):
            if groups.sizes[number] <= room:
                held.append(groups[number])
                room -= len(held[-1])
    if not held:
        held = [groups[int(groups.sizes.argmin())]]
    kept = _give_back(classes, held)
    chosen = sorted(i for group in held for i in group)
    inside = np.ones(total, dtype=bool)
    inside[chosen] = False
    remaining = some_of(examples, np.flatnonzero(inside).tolist())
    apart = store(
        (replace(one, id=one.id.replace("train", "eval")) for one in some_of(examples, chosen)), EXAMPLES, place
    )
    here = {one for one, trains in zip(classes, inside.tolist(), strict=True) if trains}
    lost = sorted(set().union(*(classes[i] for i in chosen)) - set().union(*here))
    evenly = ", the same share of every class" if kind is TaskKind.CLASSIFICATION else ""
    notices = [f"held out for evaluation: {len(apart)} of {total} rows{evenly} (data.eval=FILE gives others)"]
    if repeats:
        where = "on one side of the split" if apart_by_content else "on both sides of the split: they are too many"
        notices.append(f"{repeats} rows repeat the content of another row; repeated rows are {where}")
    if kept:
        notices.append(f"too rare to be held out, all rows are for training: {_named(kept, labels)}")
    if lost:
        notices.append(f"held out, and not in the training rows: {_named(lost, labels)}")
    return remaining, apart, notices


def shuffled(draw: random.Random, items: array[int]) -> array[int]:
    """`draw.sample(items, len(items))`, in an array."""
    pool, found = items[:], array("q")
    for left in range(len(pool), 0, -1):
        place = draw.randrange(left)
        found.append(pool[place])
        pool[place] = pool[left - 1]
    return found


def repeated(train: Sequence[Example], evaluation: Sequence[Example]) -> int:
    """How many evaluation examples have the content of a training example."""
    hashes = bytearray()
    for example in chain(train, evaluation):
        hashes += content_of(example)
    groups = Groups(bytes(hashes))
    in_both = groups.first < len(train)
    trains = Groups(bytes(hashes[: 16 * len(train)])).sizes
    return int(groups.sizes[in_both].sum()) - int(trains.sum())


def _quotas(sizes: Sequence[int], count: int) -> list[int]:
    """How many examples of each stratum are held out, `count` in all, by largest remainders."""
    exact = [count * size / sum(sizes) for size in sizes]
    quotas = [int(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in order[: count - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _give_back(classes: Sequence[frozenset[int]], held: list[list[int]]) -> list[int]:
    """Take groups out of `held`, in place, until every class has training rows. The classes that it was done for."""
    total = Counter(label for own in classes for label in own)
    if not total:
        return []
    out = Counter(label for group in held for i in group for label in classes[i])
    kept: set[int] = set()
    for group in list(held):
        here = Counter(label for i in group for label in classes[i])
        if (lost := {label for label in here if out[label] == total[label]}) and len(held) > 1:
            held.remove(group)
            out -= here
            kept |= lost
    return sorted(kept)


def _classes(example: Example) -> frozenset[int]:
    """The classes that an example has. The right one of several choices is none: it is another text in every row."""
    own = () if example.label is None or example.choices else (example.label,)
    return frozenset(label for label in (*own, *(example.labels or ()), *example.tags) if label >= 0)


def _named(classes: Sequence[int], labels: Sequence[str]) -> str:
    return ", ".join(f"'{labels[i]}'" for i in classes[:5]) + (" and others" if len(classes) > 5 else "")


def draw_rows(rows: Sequence[T], most: int | None, seed: int, draw: str) -> Sequence[T]:
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
    return some_of(rows, sorted(generator.sample(range(len(rows)), most)))
