"""Scores, as pure functions.

All are in [0, 1], except correlations (-1 to 1), BLEU and chrF (0 to 100), squared errors, and perplexity (1 to
infinity).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import groupby

References = Sequence[Sequence[str]]


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """The share of predictions that equal their label."""
    _check_lengths(predictions, labels)
    return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)


def macro_f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """The mean of F1 over the classes that occur in the labels or the predictions, each with the same weight.

    A class without a right prediction has an F1 of 0.
    """
    _check_lengths(predictions, labels)
    pairs = list(zip(predictions, labels, strict=True))
    classes = {*predictions, *labels}
    return sum(_f1(pairs, label) for label in classes) / len(classes)


def _f1(pairs: Sequence[tuple[int, int]], label: int) -> float:
    right = sum(p == y == label for p, y in pairs)
    return f_measure(right, sum(p == label for p, _ in pairs), sum(y == label for _, y in pairs))


def f_measure(right: int, predicted: int, actual: int) -> float:
    """F1, the harmonic mean of precision and recall, from counts; 0 where nothing is predicted and nothing is there."""
    return 2 * right / (predicted + actual) if predicted + actual else 0.0


def label_set_scores(predictions: Sequence[Collection[int]], labels: Sequence[Collection[int]]) -> dict[str, float]:
    """Scores of rows with any number of labels each: `micro_f1`, `macro_f1`, `subset_accuracy`.

    `micro_f1` counts all labels of all rows together. `macro_f1` is the mean over the labels that occur in the rows or
    the predictions. `subset_accuracy` is the share of rows with all labels right and no other.
    """
    _check_lengths(predictions, labels)
    pairs = [(set(p), set(y)) for p, y in zip(predictions, labels, strict=True)]
    right, predicted, actual = (
        Counter(label for pair in pairs for label in part(*pair))
        for part in (set.intersection, lambda p, _: p, lambda _, y: y)
    )
    each = [f_measure(right[label], predicted[label], actual[label]) for label in predicted | actual]
    return {
        "micro_f1": f_measure(right.total(), predicted.total(), actual.total()),
        "macro_f1": sum(each) / len(each) if each else 0.0,
        "subset_accuracy": sum(p == y for p, y in pairs) / len(pairs),
    }


def pearson(predictions: Sequence[float], values: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either side is constant, which has none."""
    _check_lengths(predictions, values)
    ours, theirs = _centred(predictions), _centred(values)
    spread = math.hypot(*ours) * math.hypot(*theirs)
    return math.fsum(a * b for a, b in zip(ours, theirs, strict=True)) / spread if spread else 0.0


def spearman(predictions: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's correlation: Pearson's of the ranks. Equal numbers share the mean of their ranks."""
    _check_lengths(predictions, values)
    return pearson(_ranks(predictions), _ranks(values))


def _centred(numbers: Sequence[float]) -> list[float]:
    if min(numbers) == max(numbers):  # the mean may differ from them in the last bit
        return [0.0] * len(numbers)
    mean = math.fsum(numbers) / len(numbers)
    return [number - mean for number in numbers]


def _ranks(numbers: Sequence[float]) -> list[float]:
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    for _, tied in groupby(enumerate(order), key=lambda place: numbers[place[1]]):
        places = list(tied)
        for _, index in places:
            ranks[index] = (places[0][0] + places[-1][0]) / 2
    return ranks


def mean_squared_error(predictions: Sequence[float], values: Sequence[float]) -> float:
    """The mean of the squared differences."""
    _check_lengths(predictions, values)
    return math.fsum((p - y) ** 2 for p, y in zip(predictions, values, strict=True)) / len(values)


def rouge(predictions: Sequence[str], references: References) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures: `rouge1`, `rouge2`, `rougeL`.

    By the rouge-score library, without stemming (Lin 2004). For each example and each measure the best reference
    counts. The result is the mean over examples.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check_references(predictions, references)
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    scores = [
        scorer.score_multi(list(ours), prediction) for prediction, ours in zip(predictions, references, strict=True)
    ]
    return {name: float(sum(score[name].fmeasure for score in scores) / len(scores)) for name in names}


def bleu(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU from 0 to 100, by sacrebleu with its defaults (13a tokens, exponential smoothing, cased).

    Examples may have different numbers of references.
    """
    from sacrebleu.metrics import BLEU

    _check_references(predictions, references)
    return float(BLEU(force=True).corpus_score(list(predictions), _columns(references)).score)


def chrf(predictions: Sequence[str], references: References) -> float:
    """Corpus chrF from 0 to 100, by sacrebleu with its defaults: beta 2, 6 characters, no words (Popović 2015)."""
    from sacrebleu.metrics import CHRF

    _check_references(predictions, references)
    return float(CHRF().corpus_score(list(predictions), _columns(references)).score)


def _columns(references: References) -> list[list[str | None]]:
    # sacrebleu needs the i-th references of all examples in one list, with None where an example has fewer.
    most = max(len(ours) for ours in references)
    return [[ours[i] if i < len(ours) else None for ours in references] for i in range(most)]


def exact_match(predictions: Sequence[str], references: References) -> float:
    """The share of predictions that equal one of their references; white space around them is ignored."""
    _check_references(predictions, references)
    hits = (
        prediction.strip() in {reference.strip() for reference in ours}
        for prediction, ours in zip(predictions, references, strict=True)
    )
    return sum(hits) / len(predictions)


def text_scores(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The default scores of generated texts: ROUGE, BLEU, chrF, exact match."""
    return {
        **rouge(predictions, references),
        "bleu": bleu(predictions, references),
        "chrf": chrf(predictions, references),
        "exact_match": exact_match(predictions, references),
    }


def perplexity(loss: float) -> float:
    """exp(loss), for a loss in nats per token. Infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _check_lengths(predictions: Sequence[object], others: Sequence[object]) -> None:
    if not predictions or len(predictions) != len(others):
        raise ValueError(f"{len(predictions)} predictions cannot be scored against {len(others)} rows")


def _check_references(predictions: Sequence[str], references: References) -> None:
    _check_lengths(predictions, references)
    if not all(references):
        raise ValueError("every prediction needs at least one reference")
