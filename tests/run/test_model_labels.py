"""The labels of a trained model decide what a file's labels mean: in evaluation, further training, merged folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from frostline.checkpoints import merge
from frostline.core.errors import ConfigError, DataError
from frostline.run import RunConfig, evaluate_target, inspect_model, plan_model, train
from frostline.tasks import Example, Task, TaskKind, TaskOptions, with_model_labels
from tiny_files import write_model

ORDER = ("positive", "neutral", "negative")
WORDS = {"positive": "warm", "neutral": "snow", "negative": "cached"}


def write_rows(path: Path, labels: tuple[str, ...], rows: int = 24) -> Path:
    """Sentences with one word that says the label."""
    lines = [
        {"text": f"the {WORDS.get(labels[i % len(labels)], 'sun')} day is w{i % 7}", "label": labels[i % len(labels)]}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("labels")
    write_model(place / "model")
    write_rows(place / "same.jsonl", ORDER)
    return place


def config(place: Path, out: Path, **options: Any) -> RunConfig:
    given = {
        "model": str(place / "model"),
        "task": str(place / "same.jsonl"),
        "strategy": "all",
        "data": TaskOptions(labels=ORDER),
        "max_steps": 40,
        "per_device_train_batch_size": 12,
        "learning_rate": 1e-2,
        "max_length": 16,
        "bf16": False,
    }
    return RunConfig(**{**given, "out": str(out), **options})


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    record = train(config(place, place / "run"))
    assert record.metrics is not None
    assert record.metrics.after["accuracy"] == 1.0
    assert record.data.labels == ORDER
    return place / "run"


def test_a_file_is_scored_by_the_models_own_labels(place: Path, run: Path) -> None:
    other = write_rows(place / "other.jsonl", ORDER[::-1])
    evaluation = evaluate_target(str(run), str(other))
    assert (evaluation.rows, evaluation.metrics["accuracy"], evaluation.labels) == (24, 1.0, ORDER)
    assert {(answer.text, answer.expected) for answer in evaluation.predictions} == {(n, (n,)) for n in ORDER}


@pytest.mark.parametrize("present", [("negative", "positive"), ("neutral",)])
def test_a_file_with_some_of_the_labels(present: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    evaluation = evaluate_target(str(run), str(write_rows(tmp_path / "some.jsonl", present)))
    assert (evaluation.metrics["accuracy"], evaluation.labels) == (1.0, ORDER)


def test_labels_that_the_model_does_not_know_are_refused(run: Path, tmp_path: Path) -> None:
    strange = write_rows(tmp_path / "strange.jsonl", ("positive", "fine", "bad"))
    with pytest.raises(DataError, match=r"does not know: bad, fine; the model has positive, neutral, negative: use"):
        evaluate_target(str(run), str(strange))


def test_another_order_that_was_asked_for_is_refused_not_ignored(place: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.labels: the labels of model .* are positive, neutral, negative, in"):
        evaluate_target(str(run), str(place / "same.jsonl"), options=TaskOptions(labels=ORDER[::-1]))


def test_merged_folders_keep_names_and_order(place: Path, run: Path, tmp_path: Path) -> None:
    merged = merge(run, tmp_path / "merged").folder
    found = pipeline("text-classification", model=str(merged), device="cpu")
    texts = [f"the {WORDS[name]} day is w1" for name in ORDER]
    assert [answer["label"] for answer in found(texts)] == list(ORDER)
    assert evaluate_target(str(merged), str(place / "same.jsonl")).metrics["accuracy"] == 1.0


def test_training_goes_on_from_a_classifier_with_its_labels(place: Path, run: Path, tmp_path: Path) -> None:
    merged = merge(run, tmp_path / "merged").folder
    some = write_rows(tmp_path / "some.jsonl", ("negative", "positive"))
    options = {"model": str(merged), "task": str(some), "data": TaskOptions(), "max_steps": 1, "learning_rate": 1e-6}
    record = train(config(place, tmp_path / "more", **options))
    assert record.metrics is not None
    assert record.metrics.before["accuracy"] == 1.0, "the head that was trained is kept, and means the same"
    assert record.data.labels == ORDER
    again = AutoModelForSequenceClassification.from_pretrained(
        merge(tmp_path / "more", tmp_path / "merged again").folder
    )
    assert tuple(again.config.id2label.values()) == ORDER
    assert inspect_model(str(merged), task=str(some)).head[0].shape[0] == 3
    with pytest.raises(DataError, match="does not know: bad, fine"):
        strange = write_rows(tmp_path / "strange.jsonl", ("fine", "bad", "positive"))
        train(config(place, tmp_path / "never", **{**options, "task": str(strange)}))
    assert not (tmp_path / "never").exists()


class Config:
    """As much of a config as the labels need."""

    def __init__(self, *labels: str) -> None:
        self.id2label = dict(enumerate(labels))


def task_with(labels: tuple[str, ...], *examples: Example, kind: TaskKind = TaskKind.CLASSIFICATION) -> Task:
    return Task("t", kind, list(examples), list(examples), "accuracy", labels=labels)


SEQUENCE, TOKEN = "BertForSequenceClassification", "BertForTokenClassification"


def test_several_labels_of_a_row_and_tags_of_words_move_too() -> None:
    many = task_with(
        ("a", "b"), Example("1", "x", labels=(0, 1)), Example("2", "y", labels=()), kind=TaskKind.MULTI_LABEL
    )
    moved = with_model_labels(many, Config("c", "b", "a"), model_class=SEQUENCE, name="m")
    assert [example.labels for example in moved.eval] == [(1, 2), ()]
    tagged = task_with(("O", "B-X"), Example("1", words=("x", "y", "z"), tags=(1, -100, 0)), kind=TaskKind.TAGGING)
    moved = with_model_labels(tagged, Config("B-X", "O", "I-X"), model_class=TOKEN, name="m")
    assert [example.tags for example in moved.train] == [(0, -100, 1)]
    assert with_model_labels(tagged, Config("x", "y"), model_class=SEQUENCE, name="m") is tagged, "another head is new"


def test_a_model_whose_labels_have_no_names() -> None:
    nameless = Config("LABEL_0", "LABEL_1", "LABEL_2")
    numbers = task_with(("0", "2"), Example("1", "x", label=0), Example("2", "y", label=1))
    moved = with_model_labels(numbers, nameless, model_class=SEQUENCE, name="m")
    assert (moved.labels, [example.label for example in moved.train]) == (("0", "1", "2"), [0, 2])
    named = with_model_labels(task_with(ORDER), nameless, model_class=SEQUENCE, name="m")
    assert named.labels == ORDER
    assert named.notices == (
        "model 'm' has no names for its labels: they are taken in the order positive, neutral, negative",
    )
    with pytest.raises(DataError, match=r"has 3 labels without names, and task 't' has 2: no, yes: use data.labels"):
        with_model_labels(task_with(("no", "yes")), nameless, model_class=SEQUENCE, name="m")


def test_minus_1_beside_a_models_labels_is_left_out_of_data_labels() -> None:
    task = task_with(("-1", "a"), Example("1", "x", label=1))
    with pytest.raises(DataError, match=r"data.labels: -1 is no label of model 'm', which has a, b: remove it from"):
        with_model_labels(task, Config("a", "b"), model_class=SEQUENCE, name="m", given=("-1", "a"))
    left = task_with(("a",), Example("1", "x", label=0))
    assert with_model_labels(left, Config("a", "b"), model_class=SEQUENCE, name="m", given=("a",)).labels == ("a", "b")


def test_planning_for_a_classifier_reads_its_labels_too(place: Path, run: Path, tmp_path: Path) -> None:
    from frostline.cost import Workload

    merged = merge(run, tmp_path / "merged").folder
    some = write_rows(tmp_path / "some.jsonl", ("negative", "positive"))
    planned = plan_model(str(merged), "bot50", workload=Workload(), task=str(some))
    assert planned.anatomy.head[0].shape[0] == 3
