"""Which rows are held out where there is no evaluation file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from frostline.tasks import Example, Task, TaskOptions, load_task

Write = Callable[..., Path]


def load(write: Write, rows: list[dict[str, Any]], **options: Any) -> Task:
    return load_task(str(write("a.jsonl", rows)), TaskOptions.model_validate(options))


def shares(examples: Sequence[Example]) -> dict[int | None, int]:
    return dict(Counter(example.label for example in examples))


@pytest.mark.parametrize("seed", range(5))
def test_the_same_share_of_every_class(seed: int, write: Write) -> None:
    rows = [{"text": f"t{i}", "label": ["a", "b", "b", "b"][i % 4]} for i in range(200)]
    task = load(write, rows, seed=seed)
    assert (shares(task.train), shares(task.eval)) == ({0: 45, 1: 135}, {0: 5, 1: 15})
    assert "held out for evaluation: 20 of 200 rows, the same share of every class (data.eval=FILE" in "".join(
        task.notices
    )
    assert task.fingerprint == load(write, rows, seed=seed).fingerprint


@pytest.mark.parametrize("seed", range(8))
def test_a_rare_class_keeps_a_training_row(seed: int, write: Write) -> None:
    rows = [{"text": f"t{i}", "label": "common"} for i in range(58)] + [
        {"text": f"r{i}", "label": "rare"} for i in (1, 2)
    ]
    task = load(write, rows, seed=seed, eval_share=0.5)
    assert shares(task.train) == {0: 29, 1: 1}
    one = load(write, rows[:-1], seed=seed, eval_share=0.5)
    assert shares(one.train)[1] == 1
    assert "'rare'" not in "".join(task.notices)


@pytest.mark.parametrize("seed", range(8))
def test_every_label_of_a_list_keeps_a_training_row(seed: int, write: Write) -> None:
    rows = [{"text": f"t{i}", "label": ["a", "rare"] if i in (3, 4) else ["a"]} for i in range(20)]
    task = load(write, rows, seed=seed, eval_share=0.5)
    assert {label for example in task.train for label in example.labels or ()} == {0, 1}
    tags = [{"tokens": ["x"], "tags": ["RARE" if i == 3 else "O"]} for i in range(20)]
    tagged = load(write, tags, seed=seed, eval_share=0.5)
    assert {tag for example in tagged.train for tag in example.tags} == {0, 1}


def test_what_is_kept_in_training_is_said(write: Write) -> None:
    rows = [{"text": f"t{i}", "label": ["a", "rare"] if i == 3 else ["a"]} for i in range(10)]
    said = ["".join(load(write, rows, seed=seed, eval_share=0.8).notices) for seed in range(4)]
    assert any("too rare to be held out, all rows are for training: 'rare'" in notices for notices in said)
    alone = [{"text": "t", "label": str(i)} for i in range(5)]
    assert "held out, and not in the training rows: " in "".join(load(write, alone).notices)


@pytest.mark.parametrize("seed", range(5))
def test_repeated_rows_stay_on_one_side(seed: int, write: Write) -> None:
    rows = [{"text": f"t{i % 40}", "label": "ab"[i % 40 % 2]} for i in range(100)]
    task = load(write, rows, seed=seed, eval_share=0.2)
    assert not {e.text for e in task.train} & {e.text for e in task.eval}
    assert abs(len(task.eval) - 20) <= 2
    assert "60 rows repeat the content of another row; repeated rows are on one side of the split" in task.notices
    ids = sorted(int(e.id.partition(":")[2]) for e in (*task.train, *task.eval))
    assert ids == list(range(100))


def test_a_text_with_two_labels_is_one_content_and_a_pair_is_another(write: Write) -> None:
    rows = [{"text": f"t{i // 2}", "label": "ab"[i % 2], "pair": "same"} for i in range(40)]
    task = load(write, rows, eval_share=0.3)
    assert not {e.text for e in task.train} & {e.text for e in task.eval}
    pairs = [{"text": "same", "pair": f"p{i}", "label": "ab"[i % 2]} for i in range(40)]
    assert not any("repeat" in notice for notice in load(write, pairs).notices)


def test_a_prompt_that_never_changes_can_be_split(write: Write) -> None:
    rows = [{"prompt": "Tell a story.", "completion": f"c{i}"} for i in range(20)]
    task = load(write, rows)
    assert (len(task.train), len(task.eval)) == (18, 2)
    assert "19 rows repeat the content of another row; repeated rows are on both sides of the split" in str(
        task.notices
    )


def test_evaluation_rows_that_are_training_rows_too_are_counted(write: Write) -> None:
    train = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(10)]
    evaluation = write("b.jsonl", [*train[:3], {"text": "new", "label": "a"}])
    task = load(write, train, eval=str(evaluation))
    assert any(
        notice.startswith("3 of 4 evaluation rows have the content of a training row") for notice in task.notices
    )
    fresh = write("c.jsonl", [{"text": "new", "label": "a"}])
    assert len(load(write, train, eval=str(fresh)).notices) == 1


def test_a_share_that_is_not_used_is_said(write: Write) -> None:
    path = write("b.jsonl", [{"text": "t", "label": "a"}])
    task = load(write, [{"text": "t", "label": "a"}], eval=str(path), eval_share=0.2)
    assert "data.eval_share is not used: there are evaluation rows" in task.notices
