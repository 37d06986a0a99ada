"""Extract the answer from a generated text, by the rule of the question's data set.

The rules are those that the data sets were published with, so that scores can be compared with published ones. Some are
crude: they find an answer in almost any text. `Rule.strict` is a stricter rule beside such a one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Extract = Callable[[str], str | None]
TOLERANCE = 0.001


@dataclass(frozen=True)
class Rule:
    """How the answers of a data set are extracted and compared.

    Attributes:
        extract: the published rule: the answer in a text, or None.
        right: whether an extracted answer is the expected one.
        strict: a stricter rule, which accepts only what is clearly meant as an answer.
    """

    extract: Extract
    right: Callable[[str, str], bool] = str.__eq__
    strict: Extract | None = None


def last_number(text: str) -> str | None:
    """The last number of a text, without commas and without a full stop after it: `1,200.50.` is `1200.50`."""
    numbers = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return numbers[-1].removesuffix(".") if numbers else None


def same_number(answer: str, expected: str) -> bool:
    """Whether two numbers differ by at most 0.001."""
    return abs(float(answer.replace(",", "")) - float(expected.replace(",", ""))) <= TOLERANCE


def first_letter(text: str) -> str | None:
    """The first capital letter from A to E in a text, also inside a word: the published rule of AQuA."""
    found = re.search("[A-E]", text)
    return found[0] if found else None


def chosen_letter(text: str) -> str | None:
    """The option, A to E, that a text clearly chooses.

    It is the letter of the last `answer is (B)` or `answer: B`. Without one, it is the only letter that is an option
    label, `(B)`, or alone on a line, `B` or `B.` or `B)`. None where there is no such letter, or more than one.
    """
    said = re.findall(r"(?i:answer(?:\s+is)?)\s*:?\s*(?:\(([A-E])\)|([A-E])(?=[).,;:]|\s*$))", text, re.MULTILINE)
    if said:
        return str("".join(said[-1]))
    labels = set(re.findall(r"\(([A-E])\)", text)) | set(re.findall(r"^\s*([A-E])[).]?\s*$", text, re.MULTILINE))
    return labels.pop() if len(labels) == 1 else None


def first_of(*answers: str) -> Extract:
    """The rule that finds the first of `answers` in a text."""
    pattern = re.compile("|".join(map(re.escape, answers)))

    def extract(text: str) -> str | None:
        found = pattern.search(text)
        return found[0] if found else None

    return extract


_NUMBER = Rule(last_number, same_number)
_CHOICE = Rule(first_of(*(f"answer{i}" for i in range(1, 6))))

RULES = {
    "svamp": _NUMBER,
    "addsub": _NUMBER,
    "multiarith": _NUMBER,
    "singleeq": _NUMBER,
    "gsm8k": _NUMBER,
    "aqua": Rule(first_letter, strict=chosen_letter),
    "boolq": Rule(first_of("true", "false")),
    "piqa": Rule(first_of("solution1", "solution2")),
    "winogrande": Rule(first_of("option1", "option2")),
    "siqa": _CHOICE,
    "arc-e": _CHOICE,
    "arc-c": _CHOICE,
    "obqa": _CHOICE,
}
"""Data set -> its rule."""
