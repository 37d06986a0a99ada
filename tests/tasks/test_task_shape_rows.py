"""Rows of the shapes of tasks against the tokenizer's own word ids, offsets and pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from frostline.core.errors import UserError
from frostline.tasks import Collator, Example, Task, TaskKind, encode, pad_rows, prepare_tokenizer
from shapes import LABELS, shape

IGNORED = -100


@pytest.fixture(scope="module")
def bert(models_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2")


def _task(kind: TaskKind, *examples: Example, labels: tuple[str, ...] = ()) -> Task:
    return Task("t", kind, examples, examples, "loss", labels=labels)


def test_a_number_stays_as_it_is(bert: Any) -> None:
    task = _task(TaskKind.REGRESSION, Example("a", "x", value=3.75), Example("b", "y z", value=2))
    rows = encode(task, "train", bert, 16, "encoder")
    assert [row["labels"] for row in rows] == [3.75, 2.0]
    batch = Collator(bert, pad_to=8)(rows)
    assert batch["labels"].tolist() == [3.75, 2.0] and batch["labels"].dtype is torch.float32


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_several_labels_are_a_mark_for_each(kind: Any, bert: Any) -> None:
    task = _task(
        TaskKind.MULTI_LABEL, Example("a", "x", labels=(0, 2)), Example("b", "y", labels=()), labels=tuple("pqr")
    )
    rows = encode(task, "train", bert, 16, kind)
    batch = Collator(bert, pad_to=8)(rows)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]], "marks are not padded"
    assert batch["labels"].is_floating_point() and batch["input_ids"].shape == (2, 8)


def test_tags_are_at_each_words_first_token(bert: Any) -> None:
    task = shape(TaskKind.TAGGING)
    for example, row in zip(task.train, encode(task, "train", bert, 64, "encoder"), strict=True):
        own = bert(list(example.words), is_split_into_words=True)
        assert row["input_ids"] == own["input_ids"]
        seen: set[int] = set()
        expected = []
        for word in own.word_ids():
            expected.append(IGNORED if word is None or word in seen else example.tags[word])
            seen.add(-1 if word is None else word)
        assert row["labels"] == expected
    assert any(row["labels"].count(IGNORED) > 3 for row in encode(task, "train", bert, 64, "encoder"))


@pytest.mark.parametrize("max_length", range(3, 14))
def test_long_words_are_cut_after_a_whole_one(max_length: int, bert: Any) -> None:
    words = ("internationalization", "is", "unpronounceable", "here")
    task = _task(TaskKind.TAGGING, Example("a", words=words, tags=(0, 1, 2, 0)), labels=LABELS[TaskKind.TAGGING])
    [row] = encode(task, "train", bert, max_length, "encoder")
    kept = [len(bert(" ".join(words[:count]))["input_ids"]) for count in range(1, 5)]
    whole = sum(length <= max_length for length in kept)
    assert len(row["input_ids"]) == (kept[whole - 1] if whole else max_length)
    assert [tag for tag in row["labels"] if tag != IGNORED] == [0, 1, 2, 0][: max(whole, 1)]
    assert row["input_ids"][-1] == bert.sep_token_id


def test_words_without_tokens_have_no_tag(bert: Any) -> None:
    words = ("a", "\u200b", "b", "\x00", "c d")
    task = _task(TaskKind.TAGGING, Example("a", words=words, tags=(0, 1, 2, 1, 3)), labels=LABELS[TaskKind.TAGGING])
    [row] = encode(task, "train", bert, 32, "encoder")
    tokens = bert.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["[CLS]", "a", "b", "c", "d", "[SEP]"]
    assert row["labels"] == [IGNORED, 0, 2, 3, IGNORED, IGNORED]


def test_a_decoders_words_have_their_own_tokens(models_dir: Path) -> None:
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(models_dir / "base16"))
    example = shape(TaskKind.TAGGING).train[2]
    [row] = encode(_task(TaskKind.TAGGING, example, labels=LABELS[TaskKind.TAGGING]), "train", tokenizer, 64, "decoder")
    assert row["input_ids"] == tokenizer(" ".join(example.words))["input_ids"]
    assert [tag for tag in row["labels"] if tag != IGNORED] == [tag for tag in example.tags if tag != IGNORED]


def test_windows_are_the_tokenizers_and_hold_the_answer(bert: Any) -> None:
    words = [f"w{i}" for i in range(150)]
    context = " ".join(words)
    answer, question = "w77 w78", "Where is it?"
    example = Example("a", question, context, answers=((answer, context.index(answer)),))
    rows = encode(_task(TaskKind.EXTRACTION, example), "train", bert, 60, "encoder").rows
    own = bert(question, context, truncation="only_second", max_length=60, stride=20, return_overflowing_tokens=True)
    assert [row["input_ids"] for row in rows] == own["input_ids"]
    assert [row["token_type_ids"] for row in rows] == own["token_type_ids"]
    spans = {bert.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]) for row in rows}
    assert spans == {answer, "[CLS]"}
    held = [answer in bert.decode(row["input_ids"]) for row in rows]
    assert [row["start_positions"] > 0 for row in rows] == held
    assert {row["example_id"] for row in rows} == {"a"}


def test_every_answer_of_a_question_is_found_again(bert: Any) -> None:
    task = shape(TaskKind.EXTRACTION, train=40)
    rows = encode(task, "train", bert, 64, "encoder").rows
    assert len(rows) == 40
    for example, row in zip(task.train, rows, strict=True):
        text = bert.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1])
        assert text == (example.answers[0][0].lower() if example.answers else "[CLS]")


def test_a_long_question_leaves_room_for_the_context(bert: Any) -> None:
    example = Example("a", "why " * 100, "because it rains a lot", answers=(("it rains", 8),))
    encoded = encode(_task(TaskKind.EXTRACTION, example), "train", bert, 32, "encoder")
    assert encoded.truncated == 1 and max(encoded.lengths) <= 32
    assert any(row["start_positions"] for row in encoded)
    with pytest.raises(UserError, match="max_length: 4 tokens leave no room for a context"):
        encode(_task(TaskKind.EXTRACTION, example), "train", bert, 4, "encoder")
    moved = Example("train:3", "why", "because it rains", answers=(("it rains", 7),))
    with pytest.raises(UserError, match="train:3: the answer 'it rains' is not at character 7"):
        encode(_task(TaskKind.EXTRACTION, moved), "train", bert, 32, "encoder")


def test_choices_are_pairs_side_by_side(bert: Any) -> None:
    task = shape(TaskKind.CHOICE)
    encoded = encode(task, "train", bert, 32, "encoder")
    assert encoded.texts == 3
    for example, row in zip(task.train, encoded, strict=True):
        own = bert([example.text] * 3, list(example.choices))
        assert row["input_ids"] == own["input_ids"] and row["token_type_ids"] == own["token_type_ids"]
        assert row["labels"] == example.label
    batch = Collator(bert, pad_to=40)(encoded.rows[:5])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape == (5, 3, 40)
    assert batch["attention_mask"].sum().item() == sum(len(ids) for row in encoded.rows[:5] for ids in row["input_ids"])
    uneven = _task(TaskKind.CHOICE, task.train[0], Example("train:9", "x", choices=("a", "b"), label=0))
    with pytest.raises(UserError, match="train:9 has 2 choices and train:0 has 3"):
        encode(uneven, "train", bert, 32, "encoder")


def test_a_decoder_learns_the_right_choice(tokenizer: Any) -> None:
    example = Example("a", "Which?", choices=("cat", "dog"), label=1)
    [row] = encode(_task(TaskKind.CHOICE, example), "train", tokenizer, 32, "decoder")
    assert tokenizer.decode(row["input_ids"]) == "Which?\ndog</s>"
    assert tokenizer.decode([token for token in row["labels"] if token != IGNORED]) == "dog</s>"
    assert row["example_id"] == "a"


def test_floats_are_never_padded_and_whole_numbers_never_become_floats() -> None:
    batch = pad_rows([{"input_ids": [1], "labels": [1.0, 0.0]}, {"input_ids": [1, 2], "labels": [0.0, 1.0]}], 0)
    assert batch["labels"].tolist() == [[1, 0], [0, 1]]
    assert batch["input_ids"].dtype is batch["attention_mask"].dtype is torch.int64


@pytest.mark.parametrize(
    ("kind", "model", "able"),
    [
        (TaskKind.EXTRACTION, "decoder", "an encoder"),
        (TaskKind.TAGGING, "encoder-decoder", "an encoder or a decoder"),
    ],
)
def test_models_that_cannot(kind: TaskKind, model: Any, able: str, make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=f"cannot do: use {able} model"):
        encode(shape(kind), "train", make_tokenizer(), 32, model)
