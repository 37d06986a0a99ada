"""Metrics of the shapes of tasks, by hand and against scikit-learn, scipy and sacrebleu."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from frostline.core.errors import UserError
from frostline.tasks import (
    TaskKind,
    TaskOptions,
    answer_scores,
    chrf,
    entities,
    entity_scores,
    label_set_scores,
    mean_squared_error,
    pearson,
    spearman,
)
from frostline.tasks._build import main_metric


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-A", [("A", 0, 2), ("A", 3, 4)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),  # of another kind
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),  # IOB1 begins with I
        ("S-A B-A E-A", [("A", 0, 1), ("A", 1, 3)]),  # IOBES
        ("B-A E-A I-A", [("A", 0, 2), ("A", 2, 3)]),  # E has ended the first one
        ("U-A U-A B-A L-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 4)]),  # BILOU
        ("B-X-Y I-X-Y", [("X-Y", 0, 2)]),
        ("NOUN NOUN X-RAY", [("NOUN", 0, 1), ("NOUN", 1, 2), ("X-RAY", 2, 3)]),  # no letter: each word alone
        ("O O", []),
    ],
)
def test_entities_by_hand(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert [tuple(entity) for entity in entities(tags.split())] == found


def test_entity_scores_by_hand() -> None:
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "B-PER", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "I-LOC", "B-PER", "B-PER"]]
    # Right: LOC at 3 of the first text, PER at 2 of the second. Predicted: 2 and 3. There: 2 and 2.
    scores = entity_scores(predicted, expected)
    assert scores == pytest.approx({"precision": 2 / 5, "recall": 2 / 4, "f1": 4 / 9, "accuracy": 5 / 8})
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}
    parts = entity_scores([["NOUN", "VERB", "NOUN"]], [["NOUN", "NOUN", "NOUN"]])
    assert parts["f1"] == parts["accuracy"] == pytest.approx(2 / 3)


def test_label_sets_against_scikit_learn() -> None:
    draw = random.Random(0)
    for _ in range(50):
        sets = [[[label for label in range(4) if draw.random() < 0.4] for _ in range(7)] for _ in range(2)]
        ours, theirs = (np.array([[label in row for label in range(4)] for row in side], dtype=int) for side in sets)
        expected = {
            "micro_f1": f1_score(theirs, ours, average="micro", zero_division=0),
            "macro_f1": f1_score(theirs, ours, average="macro", zero_division=np.nan),
            "subset_accuracy": accuracy_score(theirs, ours),
        }
        assert label_set_scores(*sets) == pytest.approx(expected)
    assert label_set_scores([()], [()]) == {"micro_f1": 0, "macro_f1": 0, "subset_accuracy": 1}


def test_correlations_against_scipy() -> None:
    draw = random.Random(0)
    for _ in range(50):
        ours, theirs = ([draw.choice([draw.random(), draw.randint(0, 3)]) for _ in range(9)] for _ in range(2))
        assert pearson(ours, theirs) == pytest.approx(pearsonr(ours, theirs).statistic, abs=1e-9)
        assert spearman(ours, theirs) == pytest.approx(spearmanr(ours, theirs).statistic, abs=1e-9)
    assert pearson([0.1] * 3, [1, 2, 3]) == spearman([1, 2, 3], [5, 5, 5]) == 0
    assert mean_squared_error([1, 2.5], [2, 2]) == pytest.approx((1 + 0.25) / 2)


def test_answers_as_squad_scores_them() -> None:
    # "the Eiffel Tower!" is "eiffel tower"; of "in new york" and "new york city" two words of three are shared.
    scores = answer_scores(["the Eiffel Tower!", "in New York"], [["Eiffel  tower", "x"], ["New York City", "Rome"]])
    assert scores == pytest.approx({"exact_match": 0.5, "f1": (1 + 2 / 3) / 2})


def test_silence_is_right_only_where_there_is_no_answer() -> None:
    scores = answer_scores(["", "", "Rome", "the"], [[], ["Rome"], [], ["a"]])
    # The last right answer is an article alone: it counts as none, and so does what was predicted.
    assert scores == pytest.approx({"exact_match": 2 / 4, "f1": 2 / 4, "f1_answered": 1 / 2, "f1_unanswered": 1 / 2})


def test_chrf_is_sacrebleus() -> None:
    predictions = ["Der Flughafen liegt in Århus.", "Er hat eine Bahn."]
    references = [["Der Flughafen ist in Århus.", "In Århus liegt der Flughafen."], ["Er hat eine lange Bahn."]]
    columns = [[references[0][0], references[1][0]], [references[0][1], None]]
    assert chrf(predictions, references) == pytest.approx(sacrebleu.corpus_chrf(predictions, columns).score)
    assert chrf(["same"], [["same"]]) == pytest.approx(100)


def test_the_main_metric_is_an_option() -> None:
    assert main_metric(TaskKind.GENERATION, TaskOptions(metric="chrf"), "bleu") == "chrf"
    assert main_metric(TaskKind.GENERATION, TaskOptions(), "bleu") == "bleu"
    assert main_metric(TaskKind.REGRESSION, TaskOptions()) == "pearson"
    assert main_metric(TaskKind.GENERATION, TaskOptions(generate_rows=0), "bleu") == "loss"
    with pytest.raises(UserError, match="no metric 'bleu' in this regression task: use one of pearson, spearman"):
        main_metric(TaskKind.REGRESSION, TaskOptions(metric="bleu"))
    with pytest.raises(UserError, match="no metric 'chrf' in this generation task: use one of loss, perplexity"):
        main_metric(TaskKind.GENERATION, TaskOptions(metric="chrf", generate_rows=0))
