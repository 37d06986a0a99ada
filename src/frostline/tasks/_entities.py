"""Entities in tagged words, and their F1.

The rule is that of the CoNLL shared tasks (conlleval) and of seqeval's default mode: an entity is a type and a span of
words, and is right only where both are. It goes for IOB1, IOB2, IOBES and BILOU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from frostline.tasks._metrics import f_measure

OUTSIDE = "O"
BEGINS, ENDS = frozenset("BSU"), frozenset("ESLU")
INSIDE = "I"


class Entity(NamedTuple):
    """Words `start` to `end` (not with it) that are one thing of a kind, such as a person."""

    kind: str
    start: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities in the tags of a text's words.

    `O` is outside. In `B-PER` the letter tells a place in the entity: B begins, I (or M) is inside, E (or L) ends, and
    S (or U) is one word alone. A tag also begins an entity where the word before it is outside or ended one, or is of
    another kind. A tag without such a letter, as for parts of speech, is an entity of one word.
    """
    found: list[Entity] = []
    open_ = False
    for place, tag in enumerate(tags):
        if tag == OUTSIDE:
            open_ = False
            continue
        letter, kind = _parts(tag)
        if open_ and letter not in BEGINS and found[-1].kind == kind:
            found[-1] = found[-1]._replace(end=place + 1)
        else:
            found.append(Entity(kind, place, place + 1))
        open_ = letter not in ENDS
    return found


def _parts(tag: str) -> tuple[str, str]:
    letter, dash, kind = tag.partition("-")
    return (letter, kind) if dash and letter in (*BEGINS, *ENDS, INSIDE, "M") else ("S", tag)


def entity_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of the entities of all texts together, and `accuracy`, the share of right tags.

    A measure without anything to divide by is 0.
    """
    right = found = actual = words = equal = 0
    for ours, theirs in zip(predicted, expected, strict=True):
        mine, wanted = set(entities(ours)), set(entities(theirs))
        right, found, actual = right + len(mine & wanted), found + len(mine), actual + len(wanted)
        equal += sum(a == b for a, b in zip(ours, theirs, strict=True))
        words += len(theirs)
    return {
        "precision": right / found if found else 0.0,
        "recall": right / actual if actual else 0.0,
        "f1": f_measure(right, found, actual),
        "accuracy": equal / words if words else 0.0,
    }
