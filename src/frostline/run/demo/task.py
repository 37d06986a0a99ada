"""The demo's task: was a sentence left as it was written, or have two of its words changed places?

    Lily pushed the shiny bike in the garden     intact
    Lily pushed the bike shiny in the garden     swapped

A swap exchanges two content words (adjective, noun, verb) of different kinds with no other content word between them;
names, places and the small words stay. No content word of a train row stands in a dev row. So neither the words of a
dev sentence nor the order of its small words say anything about its label: a model must know which kind each word is,
and it can know that only from having read English before.
"""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path

from frostline.core.files import write_text
from frostline.core.seeding import derive_seed

LABELS = ("intact", "swapped")
ROWS = {"train": 800, "dev": 400}

NAMES = (
    "Amy",
    "Anna",
    "Ben",
    "Bob",
    "Jack",
    "Jane",
    "Leo",
    "Lily",
    "Lucy",
    "Max",
    "Mia",
    "Sam",
    "Sara",
    "Sue",
    "Tim",
    "Tom",
)

PATTERNS = (
    "One day, {name} {did} a {adjective} {thing}",
    "{name} {did} the {adjective} {thing} in the {place}",
    "{name} {did} the {thing} and the {animal} {acted}",
    "{name} and the {animal} {acted} in the {place} all day",
    "{name} said that the {thing} was very {adjective}",
    "The {adjective} {animal} {acted} in the {place}",
    "The {animal} {did} a {adjective} {thing} for {name}",
    "The {thing} was {adjective} and {name} {did} it",
)

KINDS = {"adjective": "adjective", "thing": "noun", "animal": "noun", "did": "verb", "acted": "verb"}
"""The kind of word in each place of a pattern that a swap may touch."""

_LISTS = {
    "train": {
        "adjective": "beautiful big brave cold funny happy heavy kind old red round soft wet yellow",
        "thing": "apple ball boat box cake car dress flower hat rock toy tree",
        "animal": "bear bird dog elephant fish fox girl mouse puppy squirrel",
        "did": "bought fixed found gave helped liked lost made opened took threw wanted",
        "acted": "jumped laughed played ran sang slept stopped walked",
        "place": "house kitchen park river room",
    },
    "dev": {
        "adjective": "dirty green hot hungry little new pretty sad scared shiny small strong tiny special",
        "thing": "bag balloon bike book cookie doll leaf plane shell shoe truck stick",
        "animal": "boy bunny cat duck frog lion monkey rabbit turtle kitten",
        "did": "brought carried chased cleaned dropped got hugged kicked loved painted pushed shared",
        "acted": "climbed cried danced fell smiled swam waited jogged",
        "place": "forest garden pond store yard",
    },
}

WORDS = {split: {place: words.split() for place, words in lists.items()} for split, lists in _LISTS.items()}
"""The words that may fill each place of a pattern, by split."""


def rows(split: str, seed: int = 0) -> list[dict[str, str]]:
    """The rows of `train` or `dev`: `{"text", "label"}`, half of each label, no text twice, the same for one seed."""
    rng = random.Random(derive_seed(seed, "demo", split))
    labels: dict[str, str] = {}
    while len(labels) < ROWS[split]:
        label = LABELS[len(labels) % 2]
        labels.setdefault(_sentence(WORDS[split], label, rng), label)
    found = [{"text": text, "label": label} for text, label in labels.items()]
    rng.shuffle(found)
    return found


def write(folder: Path) -> None:
    """Write `train.jsonl` and `dev.jsonl` into `folder`."""
    for split in ROWS:
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows(split)))


def _sentence(words: dict[str, list[str]], label: str, rng: random.Random) -> str:
    pattern = rng.choice(PATTERNS)
    chosen = {place: rng.choice(choices) for place, choices in words.items()}
    if label == "swapped":
        content = [place for place in re.findall(r"{(\w+)}", pattern) if place in KINDS]
        neighbours = [(a, b) for a, b in pairwise(content) if KINDS[a] != KINDS[b]]
        first, second = rng.choice(neighbours)
        chosen[first], chosen[second] = chosen[second], chosen[first]
    return pattern.format(name=rng.choice(NAMES), **chosen)
