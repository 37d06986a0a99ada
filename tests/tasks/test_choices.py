"""Which of a row's choices is right: by name, number, letter or text."""

from __future__ import annotations

from typing import Any

import pytest
from test_columns import Rows, Write, flags_in, load, options_of, refused


def test_where_the_choices_are_counted_from_is_seen_in_all_rows_or_asked_for(write: Write) -> None:
    rows = [{"question": "q", "choices": ["x", "y", "z"], "label": label} for label in (1, 2)]
    message = refused(write, rows)
    assert "may count the choices from 0 or from 1" in message
    from_0, from_1 = flags_in(message)
    assert [e.label for e in load(write, rows, **options_of(from_0)).train] == [1, 2]
    assert [e.label for e in load(write, rows, **options_of(from_1)).train] == [0, 1]
    assert [e.label for e in load(write, [*rows, {**rows[0], "label": 3}]).train] == [0, 1, 2]
    assert [e.label for e in load(write, [*rows, {**rows[0], "label": 0}]).train] == [1, 2, 0]
    assert "does not say in one way which choice is right" in refused(write, [*rows, {**rows[0], "label": 9}])


def test_a_number_that_may_be_an_index_or_a_text_is_refused(write: Write) -> None:
    rows = [{"question": "q", "choices": ["3", "2", "1", "0"], "answer": "3"}]
    assert "or repeat their texts" in refused(write, rows)


def chosen(write: Write, rows: Rows, **options: Any) -> list[str]:
    return [example.choices[example.label or 0] for example in load(write, rows, **options).train]


def test_columns_of_choices_are_in_the_order_of_their_names(write: Write) -> None:
    swapped = {"question": "red sun", "B": "bee", "A": "aye"}
    assert chosen(write, [{**swapped, "label": label} for label in ("A", "B", "b")]) == ["aye", "bee", "bee"]
    assert chosen(write, [{**swapped, "label": label} for label in ("A", "B")], labels=["B", "A"]) == ["aye", "bee"]
    assert chosen(write, [{"question": "q", "answerB": "bee", "answerA": "aye", "label": "B"}]) == ["bee"]
    whole = [{"question": "q", "answerB": "bee", "answerA": "aye", "label": f"answer{name}"} for name in "AB"]
    assert chosen(write, whole) == ["aye", "bee"]
    odd = {"question": "q", "choice1": "x", "choice3": "z", "choice2": "y"}
    assert chosen(write, [{**odd, "label": label} for label in (1, 2, 3)]) == ["x", "y", "z"]
    gap = {"question": "q", "choice1": "x", "choice4": "z", "choice2": "y"}
    assert chosen(write, [{**gap, "label": label} for label in (1, 2, 4)]) == ["x", "y", "z"]
    asked = {"columns": {"choices": ["B", "A"]}}
    assert chosen(write, [{**swapped, "label": label} for label in ("A", "B")], **asked) == ["aye", "bee"]


@pytest.mark.parametrize("names", [[f"choice{i}" for i in range(1, 12)], [*"ABCDEFGHIJK"]])
def test_there_may_be_any_number_of_columns_of_choices(names: list[str], write: Write) -> None:
    row = {"question": "q", "x": "no choice", **{name: f"text of {name}" for name in sorted(names)}}
    rows = [{**row, "label": name.removeprefix("choice")} for name in names]
    assert load(write, rows).train[0].choices == tuple(f"text of {name}" for name in names)
    assert chosen(write, rows) == [f"text of {name}" for name in names]


@pytest.mark.parametrize("options", [{}, {"labels": ["A", "B"]}])
def test_the_names_of_a_rows_own_choices_decide(options: dict[str, Any], write: Write) -> None:
    rows = [
        {"question": "q", "choices": {"text": ["bee", "aye"], "label": ["B", "A"]}, "answerKey": "A"},
        {"question": "q", "choices": {"text": ["aye", "bee"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "choices": {"text": ["bee", "aye"], "label": ["B", "A"]}, "answerKey": "B"},
    ]
    assert chosen(write, rows, **options) == ["aye", "bee", "bee"]
    by_name = [{"question": "q", "options": {"B": "bee", "A": "aye"}, "answer": label} for label in ("A", "B")]
    assert chosen(write, by_name, **options) == ["aye", "bee"]
    assert "leave data.labels out" in refused(write, rows, labels=["A", "C", "B"])
    short = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answerKey": "A"}
    assert "must have as many names (label) as texts, 2" in refused(write, [short])


def test_letters_that_may_be_texts_are_refused_with_options_that_work(write: Write) -> None:
    rows = [{"question": "q", "choices": ["B", "A"], "answer": "A"}]
    message = refused(write, rows)
    (letters,) = flags_in(message)
    assert chosen(write, rows, **options_of(letters)) == ["B"]
    assert "or write numbers from 0 in place of texts" in message
    assert chosen(write, [{**rows[0], "answer": label} for label in (0, 1)]) == ["B", "A"]
