"""Exact match and F1 of extracted answers, as SQuAD's own program scores them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from frostline.tasks._metrics import f_measure

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer in lower case, without punctuation, the articles a, an, the, and superfluous white space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def answer_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1`, means over the questions, from 0 to 1.

    The best of a question's right answers counts; where it has none, the empty text is right. Where there are
    questions of both kinds, as in SQuAD 2, they are also scored apart: `f1_answered` and `f1_unanswered`.
    """
    exact, shared = [], []
    for ours, theirs in zip(predictions, answers, strict=True):
        # An answer of articles and punctuation alone is no answer, unless the question has no other.
        right = [answer for answer in theirs if normalized(answer)] or [""]
        exact.append(max(float(normalized(ours) == normalized(answer)) for answer in right))
        shared.append(max(_word_f1(normalized(ours).split(), normalized(answer).split()) for answer in right))
    scores = {"exact_match": sum(exact) / len(exact), "f1": sum(shared) / len(shared)}
    answered = [f1 for f1, theirs in zip(shared, answers, strict=True) if theirs]
    unanswered = [f1 for f1, theirs in zip(shared, answers, strict=True) if not theirs]
    if answered and unanswered:
        scores["f1_answered"] = sum(answered) / len(answered)
        scores["f1_unanswered"] = sum(unanswered) / len(unanswered)
    return scores


def _word_f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:  # silence is right where there is no answer, and only there
        return float(ours == theirs)
    shared = Counter(ours) & Counter(theirs)
    return f_measure(shared.total(), len(ours), len(theirs))
