from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from frostline.core.errors import UserError
from frostline.tasks import Columns, Message, TaskKind, TaskOptions, load_task

Write = Callable[..., Path]
TEXTS = [{"text": f"t{i}", "label": "yes" if i % 3 else "no"} for i in range(20)]


def test_text_and_label_make_a_classification(write: Write) -> None:
    task = load_task(str(write("a.jsonl", TEXTS)), TaskOptions(eval=str(write("b.jsonl", TEXTS[:4]))))
    assert (task.kind, task.labels, task.metric) == (TaskKind.CLASSIFICATION, ("no", "yes"), "accuracy")
    assert (task.name, len(task.train), len(task.eval)) == ("a", 20, 4)
    assert (task.train[1].id, task.train[1].text, task.train[1].label) == ("train:1", "t1", 1)
    assert task.eval[0].id == "eval:0"


def test_prompt_and_completion_make_a_generation(write: Write) -> None:
    rows = [{"prompt": "p", "completion": "c", "references": ["c", "d"]}] * 2
    example = load_task(str(write("a.jsonl", rows))).train[0]
    assert (example.text, example.target, example.references) == ("p", "c", ("c", "d"))


def test_a_completion_is_the_reference_when_there_is_no_other(write: Write) -> None:
    task = load_task(str(write("a.csv", "prompt,completion\np,c\nq,d\n")))
    assert task.kind is TaskKind.GENERATION
    assert task.metric == "rougeL"
    assert {(e.target, e.references) for e in (*task.train, *task.eval)} == {("c", ("c",)), ("d", ("d",))}


def test_without_generated_rows_a_generation_is_judged_by_its_loss(write: Write) -> None:
    path = write("a.csv", "prompt,completion\np,c\nq,d\n")
    assert load_task(str(path), TaskOptions(generate_rows=0)).metric == "loss"


def test_the_first_reference_is_the_target_when_there_is_no_completion(write: Write) -> None:
    rows = [{"prompt": "p", "references": ["first", "second"]}] * 2
    assert load_task(str(write("a.jsonl", rows))).train[0].target == "first"


def test_messages_make_a_chat(write: Write) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "name": None}]
    task = load_task(str(write("a.jsonl", [{"messages": turns}] * 2)))
    assert (task.kind, task.metric) == (TaskKind.LANGUAGE, "loss")
    assert task.train[0].messages == (Message("user", "hi"), Message("assistant", "ho"))


def test_text_alone_is_plain_text(write: Write) -> None:
    task = load_task(str(write("a.jsonl", [{"text": "x"}, {"text": "y"}])))
    assert task.kind is TaskKind.LANGUAGE
    assert {task.train[0].text, task.eval[0].text} == {"x", "y"}


def test_a_mapping_renames_columns(write: Write) -> None:
    rows = [{"question": "q", "answer": "a", "text": "unused", "label": "unused"}] * 2
    options = TaskOptions(columns=Columns(prompt="question", completion="answer"))
    task = load_task(str(write("a.jsonl", rows)), options)
    assert (task.kind, task.train[0].text, task.train[0].target) == (TaskKind.GENERATION, "q", "a")


def test_a_pair_is_mapped(write: Write) -> None:
    rows = [{"premise": "p", "hypothesis": "h", "label": 1}, {"premise": "p", "hypothesis": "h", "label": 0}]
    options = TaskOptions(columns=Columns(text="premise", pair="hypothesis"), labels=("0", "1"))
    task = load_task(str(write("a.jsonl", rows)), options)
    assert {(e.text, e.pair, e.label) for e in (*task.train, *task.eval)} == {("p", "h", 1), ("p", "h", 0)}


def test_the_kind_decides_between_readings(write: Write) -> None:
    path = str(write("a.jsonl", TEXTS))
    assert load_task(path, TaskOptions(kind=TaskKind.LANGUAGE)).kind is TaskKind.LANGUAGE


def test_columns_that_fit_two_kinds_are_refused(write: Write) -> None:
    path = write("a.jsonl", [{"text": "t", "label": "l", "prompt": "p", "completion": "c"}])
    with pytest.raises(
        UserError, match=r"columns completion, label, prompt, text fit more than one kind: classification"
    ):
        load_task(str(path))


def test_columns_that_fit_no_kind_are_refused(write: Write) -> None:
    path = write("a.jsonl", [{"a": "t", "b": "l"}])
    with pytest.raises(
        UserError,
        match=rf"^{path}: columns a, b do not make a known task: use data.columns.prompt=a data.columns.completion=b$",
    ):
        load_task(str(path))
    with pytest.raises(UserError, match="do not make a generation task"):
        load_task(str(write("b.jsonl", TEXTS)), TaskOptions(kind=TaskKind.GENERATION))


def test_numbers_and_booleans_are_labels(write: Write) -> None:
    rows = [{"text": "t", "label": label} for label in (10, 9, 2, 10)]
    assert load_task(str(write("a.jsonl", rows))).labels == ("2", "9", "10")
    rows = [{"text": "t", "label": label} for label in (True, False)]
    assert load_task(str(write("b.jsonl", rows))).labels == ("false", "true")


def test_declared_labels_keep_their_order(write: Write) -> None:
    task = load_task(str(write("a.jsonl", TEXTS)), TaskOptions(labels=("yes", "no", "maybe")))
    assert task.labels == ("yes", "no", "maybe")
    assert {(e.text, e.label) for e in task.train} >= {("t1", 0), ("t3", 1)}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_task(suffix: str, write: Write, tmp_path: Path) -> None:
    expected = load_task(str(write("a.jsonl", TEXTS)))
    path = tmp_path / f"b{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(TEXTS), path)
    elif suffix == ".jsonl":
        path.write_text("\ufeff" + "\n\n".join(map(json.dumps, TEXTS)), encoding="utf-8")
    else:
        mark = "," if suffix == ".csv" else "\t"
        lines = ["text" + mark + "label", *(row["text"] + mark + row["label"] for row in TEXTS)]
        path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert load_task(str(path)).fingerprint == expected.fingerprint


def test_a_csv_field_may_span_lines(write: Write) -> None:
    task = load_task(str(write("a.csv", 'text\n"one\ntwo, ""three"""\n\nfour\n')))
    assert {e.text for e in (*task.train, *task.eval)} == {'one\ntwo, "three"', "four"}


def test_a_folder_is_read_by_its_splits(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", TEXTS)
    write("validation.csv", "text,label\nv,no\n")
    write("test.jsonl", [{"text": "s", "label": "no"}] * 2)
    task = load_task(str(tmp_path))
    assert (len(task.train), [e.text for e in task.eval]) == (20, ["v"])
    assert len(load_task(str(tmp_path), TaskOptions(eval="test")).eval) == 2
    with pytest.raises(UserError, match=r"no file for the split 'dev': use 'dev' with one of \.jsonl"):
        load_task(str(tmp_path), TaskOptions(eval="dev"))


def test_a_seeded_share_is_held_out(write: Write) -> None:
    path = str(write("a.jsonl", TEXTS))
    first, again = load_task(path), load_task(path)
    assert (len(first.train), len(first.eval)) == (18, 2)
    assert {e.text for e in (*first.train, *first.eval)} == {row["text"] for row in TEXTS}
    assert first.fingerprint == again.fingerprint
    assert len(load_task(path, TaskOptions(eval_share=0.5)).eval) == 10
    assert load_task(path, TaskOptions(seed=1)).fingerprint != first.fingerprint


def test_drawn_rows_keep_their_ids_and_their_order(write: Write) -> None:
    path = str(write("a.jsonl", TEXTS))
    options = TaskOptions(eval=path, max_train_rows=6, max_eval_rows=3)
    task = load_task(path, options)
    assert [int(e.text[1:]) for e in task.train] == sorted(int(e.id.removeprefix("train:")) for e in task.train)
    assert (len(task.train), len(task.eval)) == (6, 3)
    assert [e.id for e in task.train] != [f"train:{i}" for i in range(6)]
    assert load_task(path, options.model_copy(update={"seed": 7})).fingerprint != task.fingerprint


def test_the_fingerprint_sees_content_and_order(write: Write) -> None:
    def fingerprint(rows: list[dict[str, Any]]) -> str:
        return load_task(str(write("a.jsonl", rows)), TaskOptions(eval=str(write("e.jsonl", TEXTS)))).fingerprint

    assert fingerprint(TEXTS) == fingerprint([dict(row) for row in TEXTS])
    assert fingerprint(TEXTS) != fingerprint(TEXTS[::-1])
    assert fingerprint(TEXTS) != fingerprint([*TEXTS[:-1], {"text": "t19!", "label": "yes"}])


def test_the_fingerprint_is_stable_across_versions(write: Write) -> None:
    # A change here makes every earlier run's data look like other data: say so in the changelog.
    task = load_task(str(write("a.jsonl", TEXTS)), TaskOptions(eval=str(write("b.jsonl", TEXTS[:2]))))
    assert task.fingerprint[:16] == "8367f4ce16a12807"


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown key 'txt': did you mean 'text'"):
        TaskOptions.model_validate({"columns": {"txt": "a"}})
    with pytest.raises(ValueError, match="less than 1"):
        TaskOptions(eval_share=1)
