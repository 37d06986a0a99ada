"""Labels: spellings that are one class, numbers, lists, and rows without a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from frostline.core.errors import UserError
from frostline.tasks import Task, TaskKind, TaskOptions, load_task

Write = Callable[..., Path]


def load(write: Write, found: list[Any], **options: Any) -> Task:
    path = write("a.jsonl", [{"text": "t", "label": label} for label in found])
    return load_task(str(path), TaskOptions.model_validate({"eval": str(path), **options}))


def refused(write: Write, found: list[Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(write, found, **options)
    return str(caught.value)


def test_spaces_and_unicode_forms_make_no_classes_and_it_is_said(write: Write) -> None:
    task = load(write, ["good ", "good", "cafe\u0301", "caf\u00e9", "bad", "\u00a0bad"])
    assert task.labels == ("bad", "caf\u00e9", "good")
    assert [example.label for example in task.train] == [2, 2, 1, 1, 0, 0]
    (notice,) = (notice for notice in task.notices if "one class" in notice)
    assert "bad, caf\u00e9, good (6 spellings, 3 classes)" in notice
    assert not any("one class" in notice for notice in load(write, ["good", "bad"]).notices)


def test_labels_that_differ_in_capitals_stay_apart_and_it_is_said(write: Write) -> None:
    task = load(write, ["Good", "good", "bad"])
    assert task.labels == ("Good", "bad", "good")
    assert "labels that differ only in capital letters are different classes: Good, good" in task.notices


def test_given_labels_are_trimmed_too_and_may_be_numbers(write: Write) -> None:
    assert load(write, ["good", "bad "], labels=[" good", "bad"]).labels == ("good", "bad")
    assert load(write, [1, 0], labels=[1, 0]).labels == ("1", "0")
    assert load(write, [True, False], labels=[True, False]).labels == ("true", "false")


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0], [0, 1, 2], ["0", "1", "2"], [2.0, 1, "0"]])
def test_whole_numbers_are_classes(labels: list[Any], write: Write) -> None:
    task = load(write, labels)
    assert (task.kind, task.labels) == (TaskKind.CLASSIFICATION, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([0.0, 2.6, 5.0], [0.0, 2.6, 5.0]),
        (["0", "2.60", "5"], [0.0, 2.6, 5.0]),
        (["0", "2,6", "-5"], [0.0, 2.6, -5.0]),
        ([" .5", "1e-3", 4], [0.5, 1e-3, 4.0]),
        (["0.\x1d", "\x1c2.5", 4], [0.0, 2.5, 4.0]),
    ],
)
def test_numbers_with_decimals_are_a_regression(labels: list[Any], values: list[float], write: Write) -> None:
    task = load(write, labels)
    assert (task.kind, task.labels) == (TaskKind.REGRESSION, ())
    assert [example.value for example in task.train] == values
    assert task.notices[0] == f"read as regression: text -> label (regression, {min(values):g} to {max(values):g})"


@pytest.mark.parametrize(
    "labels",
    [
        ["3,500", "1,250"],
        ["3,5", "1.5"],
        ["1.234,5", "2.000,0", "3,5"],
        ["1,234.5", "2"],
        ["1.234.567", "2.5"],
        ["1 234,5", "2,0"],
        [1.5, 2.5, "3,5"],
    ],
)
def test_a_comma_that_may_be_for_thousands_is_refused(labels: list[Any], write: Write) -> None:
    assert "may be for decimals or for thousands: write the numbers with a point" in refused(write, labels)


def test_a_text_beside_numbers_with_decimals_is_named_by_its_row(write: Write) -> None:
    assert ":3: column 'label' has numbers with decimals, but here 'much'" in refused(write, [1.5, 2.5, "much", 3])
    assert ":3: column 'label': a mark in '3,5' may be" in refused(write, [1.5, 2.5, "3,5"])
    assert load(write, ["1.5", "2.5", "much"]).labels == ("1.5", "2.5", "much"), "texts may be names"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, None], ":2: column 'label' must be a number, found nothing"),
        ([0.5, float("nan")], ":2: column 'label' must be a number, found nan"),
        (["0.5", "2.5", "much"], ":3: column 'label' must be a number, found 'much'"),
        ([0.5, 10**400], ":2: column 'label' must be a number, found a number"),
    ],
)
def test_what_is_no_number_is_refused(labels: list[Any], message: str, write: Write) -> None:
    assert message in refused(write, labels, kind="regression")


def test_most_rows_with_a_label_of_their_own_are_no_classes(write: Write) -> None:
    message = refused(write, list(range(60)))
    assert "60 different labels in 60 rows: use data.kind=regression if they are numbers to predict" in message
    assert load(write, list(range(60)), kind="regression").train[7].value == 7.0
    assert len(load(write, list(range(60)), kind="classification").labels) == 60
    assert "data.kind=regression" not in refused(write, [f"name {i}" for i in range(60)])
    assert len(load(write, [i % 30 for i in range(60)]).labels) == 30


def test_lists_are_several_labels(write: Write) -> None:
    task = load(write, [["b", "a"], [], ["c ", "c"]])
    assert (task.kind, task.labels) == (TaskKind.MULTI_LABEL, ("a", "b", "c"))
    assert [example.labels for example in task.train] == [(0, 1), (), (2,)]
    assert load(write, [["b"], ["a"]], labels=["b", "a", "z"]).train[0].labels == (0,)
    assert "unknown label 'b' in column 'label': use one of a" in refused(write, [["a"], ["b"]], labels=["a"])


def test_lists_in_cells_of_text_are_several_labels_too(write: Write) -> None:
    task = load(write, ['["b", "a"]', "[]", ' ["c"]'])
    assert (task.kind, task.labels) == (TaskKind.MULTI_LABEL, ("a", "b", "c"))
    assert [example.labels for example in task.train] == [(0, 1), (), (2,)]
    assert load(write, ["[0, 1, 1]", "[0, 0, 0]"], labels=["p", "q", "r"]).train[0].labels == (1, 2)
    assert ":1: column 'label' has lists, but 'b' is none in JSON: write" in refused(write, ["b", '["a"]'])
    assert ":2: column 'label' has lists, but '['b', 'a']' is none in JSON" in refused(write, ['["a"]', "['b', 'a']"])
    assert ":2: column 'label' must be a list of labels, found text: write it as" in refused(write, ['["a"]', ""])
    assert load(write, ["[neg]", "[pos]"]).labels == ("[neg]", "[pos]"), "brackets alone make no list"
    assert load(write, ['["a"]', '["b"]'], kind="classification").labels == ('["a"]', '["b"]')


@pytest.mark.parametrize("mark", [-1, -100])
def test_marks_for_no_label_are_refused_in_lists(mark: int, write: Write) -> None:
    message = refused(write, [[0, 1], [1, mark]])
    assert f":2: the label {mark} in column 'label' may be a class or mean that there is none" in message
    assert load(write, [[0, 1], [1, mark]], labels=[mark, 0, 1]).train[1].labels == (0, 2)


def test_minus_1_is_no_tag_unless_it_is_said(write: Write) -> None:
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": [0, -1, 2]}]
    path = str(write("a.jsonl", rows))
    with pytest.raises(UserError, match=r":1: the label -1 in column 'ner_tags' .* else give words without a tag -100"):
        load_task(path, TaskOptions(eval=path))
    options = TaskOptions.model_validate({"eval": path, "labels": [-1, 0, 2]})
    assert load_task(path, options).train[0].tags == (1, 0, 2)


def test_lists_of_zeros_and_ones_have_one_for_each_label(write: Write) -> None:
    task = load(write, [[0, 1, 1], [0, 0, 0], [1.0, 0.0, 0.0]])
    assert (task.labels, [example.labels for example in task.train]) == (("0", "1", "2"), [(1, 2), (), (0,)])
    named = load(write, [[0, 1, 1], [0, 0, 0]], labels=["toxic", "rude", "spam"])
    assert (named.labels, named.train[0].labels) == (("toxic", "rude", "spam"), (1, 2))
    assert load(write, [[0, 1], [1]]).train[0].labels == (0, 1), "lists of numbers of labels"
    assert "must be a list of 2 zeros and ones" in refused(write, [[0, 1, 1], [0, 0, 0]], labels=["a", "b"])


def test_minus_100_is_no_label_as_in_the_loss(write: Write) -> None:
    task = load(write, [0, -100, 1, -100])
    assert (task.labels, [example.id for example in task.train]) == (("0", "1"), ["train:0", "train:2"])
    assert sum("2 rows left out: their label is -100" in notice for notice in task.notices) == 2, "each file"


@pytest.mark.parametrize("mark", [-1, "-1", "-"])
def test_minus_1_is_a_class_or_no_label_and_the_user_says_which(mark: Any, write: Write) -> None:
    message = refused(write, [mark, 0, 1])
    assert f"use 'data.labels=[{mark}, 0, 1]' where it is a class, 'data.labels=[0, 1]' to leave" in message
    assert load(write, [mark, 0, 1], labels=[mark, 0, 1]).train[0].label == 0
    assert [example.label for example in load(write, [mark, 0, 1], labels=[0, 1]).train] == [0, 1]


def test_a_split_without_any_label_is_refused(write: Write) -> None:
    train = write("train.jsonl", [{"text": "t", "label": label} for label in (0, 1)])
    test = write("test.jsonl", [{"text": "t", "label": -1}] * 3)
    with pytest.raises(
        UserError, match=r"test\.jsonl: column 'label' has -1 in every row, which means that there is no"
    ):
        load_task(str(train), TaskOptions(eval=str(test)))


def test_names_of_the_hubs_lists_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    names = datasets.ClassLabel(names=["O", "B-PER"])
    text = datasets.Value("string")
    features = datasets.Features({"tokens": datasets.List(text), "ner_tags": datasets.List(names)})
    rows = [{"tokens": ["Anna", "ran"], "ner_tags": [1, 0]}] * 2
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    task = load_task("someone/names", TaskOptions(eval_share=0.5))
    assert (task.labels, task.train[0].tags) == (("B-PER", "O"), (0, 1))
