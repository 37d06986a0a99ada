"""Scores, as pure functions. All are in [0, 1], except BLEU (0 to 100) and perplexity (1 to infinity)."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    predicted = sum(p == label for p, _ in pairs)
    actual = sum(y == label for _, y in pairs)
    return 2 * right / (predicted + actual)


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
    most = max(len(ours) for ours in references)
    # sacrebleu needs the i-th references of all examples in one list, with None where an example has fewer.
    columns = [[ours[i] if i < len(ours) else None for ours in references] for i in range(most)]
    return float(BLEU(force=True).corpus_score(list(predictions), columns).score)


def exact_match(predictions: Sequence[str], references: References) -> float:
    """The share of predictions that equal one of their references; white space around them is ignored."""
    _check_references(predictions, references)
    hits = (
        prediction.strip() in {reference.strip() for reference in ours}
        for prediction, ours in zip(predictions, references, strict=True)
    )
    return sum(hits) / len(predictions)


def text_scores(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The default scores of generated texts: ROUGE, BLEU, exact match."""
    return {
        **rouge(predictions, references),
        "bleu": bleu(predictions, references),
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
