from __future__ import annotations

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from frostline.tasks import (
    Example,
    Task,
    TaskKind,
    accuracy,
    bleu,
    exact_match,
    macro_f1,
    majority_share,
    perplexity,
    rouge,
    text_scores,
)


def test_accuracy_is_the_share_of_equal_ones() -> None:
    assert accuracy([0, 1, 1, 2], [0, 1, 2, 2]) == 0.75


def test_macro_f1_by_hand() -> None:
    # Class 0: precision 2/3, recall 2/2 -> 4/5. Class 1: 1/1, 1/2 -> 2/3. Class 2 is never predicted: 0.
    assert macro_f1([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert macro_f1([0, 0, 0, 1, 1], [0, 0, 1, 1, 2]) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)


def test_rouge_by_hand() -> None:
    scores = rouge(["the cat sat"], [["the cat sat down"]])
    # Three of three predicted words and three of four expected ones: F = 2 * 1 * 3/4 / (1 + 3/4).
    assert scores["rouge1"] == pytest.approx(6 / 7)
    assert scores["rouge2"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert scores["rougeL"] == pytest.approx(6 / 7)


def test_rouge_takes_each_examples_best_reference_and_the_mean_over_examples() -> None:
    scorer = RougeScorer(["rougeL"])
    best = max(scorer.score(r, "a b c d")["rougeL"].fmeasure for r in ("d c b a", "a x c d"))
    assert rouge(["a b c d", "z"], [["d c b a", "a x c d"], ["y"]])["rougeL"] == pytest.approx(best / 2)


def test_bleu_by_hand() -> None:
    # Precisions 4/5, 2/4, 1/3, and 0/2 smoothed to 1/(2 * 2); equal lengths, so no brevity penalty.
    expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert bleu(["the cat on mat today"], [["the cat on a today"]]) == pytest.approx(expected)


def test_bleu_is_sacrebleus_with_one_reference_each() -> None:
    predictions = ["The airport is in Aarhus .", "It has a runway of 2702.0 metres."]
    references = ["The airport lies in Aarhus.", "Its runway is 2702.0 metres long."]
    assert bleu(predictions, [[r] for r in references]) == pytest.approx(
        sacrebleu.corpus_bleu(predictions, [references], force=True).score
    )


def test_bleu_takes_different_numbers_of_references() -> None:
    predictions = ["the cat sat on the mat", "a dog barked at the old man"]
    references = [["no match here", "the cat sat on the mat", "a third one"], ["a dog barked at the old man"]]
    assert bleu(predictions, references) == pytest.approx(100)
    assert bleu(predictions, [references[0][:1], references[1]]) < 80


def test_exact_match_takes_any_reference_and_ignores_outer_space() -> None:
    assert exact_match([" 42\n", "a", "B"], [["41", "42"], ["b"], ["b"]]) == pytest.approx(1 / 3)


def test_perplexity_is_exp_and_never_overflows() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e6) == math.inf


def test_text_scores_holds_every_score() -> None:
    scores = text_scores(["a b c d"], [["a b c d"]])
    assert scores == pytest.approx({"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100, "chrf": 100, "exact_match": 1})
    assert all(type(score) is float for score in scores.values())


def test_silence_scores_nothing() -> None:
    scores = text_scores(["", ""], [["a b", "c"], ["d e f g h"]])
    assert scores == pytest.approx({"rouge1": 0, "rouge2": 0, "rougeL": 0, "bleu": 0, "chrf": 0, "exact_match": 0})


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 predictions"):
        accuracy([], [])
    with pytest.raises(ValueError, match="1 predictions cannot be scored against 2 rows"):
        rouge(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="at least one reference"):
        bleu(["a"], [[]])


def _task(train: list[int], evaluation: list[int]) -> Task:
    def examples(labels: list[int]) -> list[Example]:
        return [Example(str(i), "x", label=label) for i, label in enumerate(labels)]

    return Task("t", TaskKind.CLASSIFICATION, examples(train), examples(evaluation), "accuracy", labels=("a", "b", "c"))


def test_majority_share_is_of_the_training_majority_on_the_evaluation_rows() -> None:
    assert majority_share(_task([1, 1, 0, 2], [1, 0, 0, 0])) == 0.25


def test_majority_share_breaks_ties_by_label_order() -> None:
    assert majority_share(_task([2, 1], [1, 1, 2, 0])) == 0.5


def test_only_a_classification_has_a_majority() -> None:
    with pytest.raises(ValueError, match="no majority"):
        majority_share(Task("t", TaskKind.LANGUAGE, [], [], "loss"))
