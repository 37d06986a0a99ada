"""Scores of extracted answers: each text is marked by the rule of its data set, then the marks are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frostline.tasks._answers import RULES, Extract
from frostline.tasks._task import Example, Scores

Mark = Mapping[str, Any]


def score_answers(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """Accuracy by the rule of each example's data set (`Example.group`), and a mark for every text.

    - `accuracy`: the share of right answers, by the published rules.
    - `extracted`: the share of texts in which the rule finds an answer.
    - `accuracy_strict`: as `accuracy`, but with the stricter rule where a data set has one.
    - `accuracy_svamp`, ...: for each data set alone, where there are several.

    A mark has `set`, `extracted` and `right`; where there is a stricter rule also `extracted_strict` and
    `right_strict`.
    """
    marks = [_mark(example, text) for example, text in zip(examples, texts, strict=True)]
    metrics = _accuracies(marks)
    groups = sorted({mark["set"] for mark in marks})
    if len(groups) > 1:
        for group in groups:
            found = _accuracies([mark for mark in marks if mark["set"] == group])
            metrics |= {f"{name}_{group}": value for name, value in found.items() if name != "extracted"}
    return Scores(metrics, tuple(marks))


def _mark(example: Example, text: str) -> dict[str, Any]:
    rule = RULES[example.group]

    def read(extract: Extract) -> tuple[str | None, bool]:
        answer = extract(text)
        return answer, answer is not None and any(rule.right(answer, expected) for expected in example.references)

    mark = {"set": example.group} | dict(zip(("extracted", "right"), read(rule.extract), strict=True))
    if rule.strict is not None:
        mark |= zip(("extracted_strict", "right_strict"), read(rule.strict), strict=True)
    return mark


def _accuracies(marks: Sequence[Mark]) -> dict[str, float]:
    count = len(marks)
    metrics = {
        "accuracy": sum(mark["right"] for mark in marks) / count,
        "extracted": sum(mark["extracted"] is not None for mark in marks) / count,
    }
    if any("right_strict" in mark for mark in marks):
        metrics["accuracy_strict"] = sum(mark.get("right_strict", mark["right"]) for mark in marks) / count
    return metrics
