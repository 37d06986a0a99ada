"""Rows in Arrow files are the rows in memory, for every kind of task and of model; held-out rows are as they were."""

from __future__ import annotations

import json
import pickle
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from frostline.core.errors import DataError
from frostline.core.seeding import derive_seed
from frostline.rows import Stored, TaskKind, TaskOptions
from frostline.tasks import Example, Task, encode, load_task, prepare_tokenizer
from frostline.tasks._splits import hold_out
from frostline.tasks._stored import EXAMPLES

WORDS = ["red", "green", "blue", "over", "under", "Zürich", "\u0000", '"', "a longer word", "日本"]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": 1.5, "y": [None, True]}}}]


def _rows(kind: str, count: int = 47) -> list[dict[str, Any]]:
    draw = random.Random(kind)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))

    def row(i: int) -> dict[str, Any]:
        words = draw.choices(WORDS[:5], k=3)
        made: dict[str, dict[str, Any]] = {
            "classification": {"text": text(), "label": draw.choice("abc")},
            # Only a row of the third batch has a second text.
            "some pairs": {"text": text(), "label": draw.choice("abc"), **({"pair": text()} if i == 8 else {})},
            "regression": {"text": text(), "label": draw.random() * 5},
            "multi-label": {"text": text(), "label": sorted(set(draw.choices("abc", k=i % 3)))},
            "tagging": {"words": words, "tags": draw.choices(["O", "B-X", "I-X"], k=3)},
            "extraction": {
                "question": text(),
                "context": f"{text()} here {text()} " * 9,
                "answers": {"text": ["here"], "answer_start": [0]} if i < 0 else [],
            },
            "choice": {"question": text(), "choices": [f"{i} one", f"{i} two", f"{i} three"], "label": i % 3},
            "generation": {"prompt": text(), "completion": text(), "references": [text(), text()]},
            "language": {"text": f"{i} {text()}"},
            "chats": {
                "messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}],
                **({"tools": TOOLS} if i % 2 else {}),
            },
        }
        return made[kind]

    return [row(i) for i in range(count)]


KINDS = {
    "classification": ("encoder", "decoder"),
    "some pairs": ("encoder", "decoder"),
    "regression": ("encoder",),
    "multi-label": ("encoder",),
    "tagging": ("encoder", "decoder"),
    "extraction": ("encoder",),
    "choice": ("encoder", "decoder", "encoder-decoder"),
    "generation": ("decoder", "encoder-decoder"),
    "language": ("decoder",),
    "chats": ("decoder",),
}


def _both(path: Path, options: TaskOptions, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, Task, Task]:
    """The task in memory, in new files, and in files that are found."""
    memory = load_task(str(path), options)
    monkeypatch.setattr("frostline.tasks._load.MANY_BYTES", 0)
    monkeypatch.setattr("frostline.rows._stored.BATCH", 4)
    return memory, load_task(str(path), options), load_task(str(path), options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_in_files_is_the_task_in_memory(
    kind: str, tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _rows(kind)))
    memory, new, found = _both(path, TaskOptions(), monkeypatch)
    for task in (new, found):
        assert isinstance(task.train, Stored) and isinstance(task.eval, Stored)
        for own in fields(Task):
            value = getattr(task, own.name)
            assert (list(value) if own.name in ("train", "eval") else value) == getattr(memory, own.name), own.name
        assert task.fingerprint == memory.fingerprint
        assert [task.train[i] for i in range(len(task.train))] == memory.train
        assert list(task.train[5:2:-1]) == memory.train[5:2:-1] and task.train[-1] == memory.train[-1]
    bert = AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2")
    tokenizer.chat_template = "{{ tools or '' }}{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    for model in KINDS[kind]:
        tokens = prepare_tokenizer(bert if model == "encoder" else tokenizer)
        for split in ("train", "eval"):
            held, *on_disk = (encode(task, split, tokens, 24, model) for task in (memory, new, found))  # type: ignore[arg-type]
            for rows in on_disk:
                assert isinstance(rows.rows, Stored)
                assert list(rows) == list(held) and [rows[i] for i in range(len(rows))] == list(held)
                assert (rows.truncated, rows.lengths, rows.texts) == (held.truncated, held.lengths, held.texts)
                assert rows.label_lengths == held.label_lengths
                for shifted in (False, True):
                    assert rows.label_counts(shifted=shifted).tolist() == held.label_counts(shifted=shifted).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"max_train_rows": 20, "max_eval_rows": 3, "seed": 7},
        {"eval_share": 0.5},
        {"labels": ["c", "b", "a"], "columns": {"text": "text", "label": "label"}},
    ],
)
def test_options_act_on_files_too(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{i % 19} words,{'abc'[i % 3]}\n" for i in range(60)))
    memory, *others = _both(path, TaskOptions(**options), monkeypatch)
    for task in others:
        assert (list(task.train), list(task.eval)) == (list(memory.train), list(memory.eval))
        assert (task.notices, task.fingerprint) == (memory.notices, memory.fingerprint)


def test_evaluation_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 30), ("dev", 9)):
        lines = (json.dumps({"text": f"row {i}", "label": "xy"[i % 2]}) + "\n" for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    memory, *others = _both(tmp_path, TaskOptions(), monkeypatch)
    assert any("9 of 9 evaluation rows" in notice for notice in memory.notices)
    for task in others:
        assert (list(task.eval), task.notices) == (list(memory.eval), memory.notices)


def test_a_copy_for_another_process_reads_the_same(tmp_path: Path) -> None:
    from frostline.rows import store

    rows = [Example(f"train:{i}", text=f"{i}", value=float(i)) for i in range(2500)]
    stored = store(rows, EXAMPLES, tmp_path / "rows")
    assert isinstance(stored, Stored)
    some = pickle.loads(pickle.dumps(stored.some([2400, 3, 1000, 999])))
    assert list(some) == [rows[2400], rows[3], rows[1000], rows[999]]
    saved = stored.some(np.arange(1, 2500, 2)).save(tmp_path / "saved")
    assert list(saved) == rows[1::2] and saved[1249] == rows[2499]
    with pytest.raises(IndexError):
        saved[1250]


def _held_out_before(examples: list[Example], kind: TaskKind, share: float, seed: int) -> tuple[list[str], list[str]]:
    """The ids of (remaining, held-out) examples, as they were drawn before rows lay in files: with lists and dicts."""
    count = max(1, round(share * len(examples)))
    together = defaultdict(list)
    for i, example in enumerate(examples):
        together[(example.text, example.pair)].append(i)
    groups = list(together.values())
    if min(map(len, groups)) > min(2 * count, len(examples) // 2):
        groups = [[i] for i in range(len(examples))]
    strata = defaultdict(list)
    for group in groups:
        strata[examples[group[0]].label if kind is TaskKind.CLASSIFICATION else None].append(group)
    sizes = [sum(map(len, stratum)) for stratum in strata.values()]
    exact = [count * size / sum(sizes) for size in sizes]
    quotas = [int(part) for part in exact]
    for i in sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])[: count - sum(quotas)]:
        quotas[i] += 1
    draw = random.Random(derive_seed(seed, "held out"))
    held: list[list[int]] = []
    for stratum, room in zip(strata.values(), quotas, strict=True):
        for group in draw.sample(stratum, len(stratum)):
            if len(group) <= room:
                held.append(group)
                room -= len(group)
    held = held or [min(groups, key=len)]
    labels = [example.label for example in examples]
    for group in list(held):
        out = [labels[i] for one in held for i in one]
        lost = any(out.count(labels[i]) == labels.count(labels[i]) for i in group)
        if kind is TaskKind.CLASSIFICATION and lost and len(held) > 1:
            held.remove(group)
    chosen = {i for group in held for i in group}
    return [e.id for i, e in enumerate(examples) if i not in chosen], [examples[i].id for i in sorted(chosen)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.LANGUAGE])
def test_held_out_rows_are_those_of_before(seed: int, kind: TaskKind) -> None:
    draw = random.Random(seed)
    contents = draw.choice([2, 20, 400])
    labels = draw.choice([1, 4, 30]) if kind is TaskKind.CLASSIFICATION else 0
    examples = [
        Example(f"train:{i}", text=str(draw.randrange(contents)), label=draw.randrange(labels) if labels else None)
        for i in range(draw.randint(30, 300))
    ]
    share = draw.choice([0.02, 0.1, 0.4])
    remaining, apart, _ = hold_out(examples, kind, [str(i) for i in range(labels)], share, seed, "")
    before = _held_out_before(examples, kind, share, seed)
    assert ([e.id for e in remaining], [e.id.replace("eval", "train") for e in apart]) == before


def test_a_bad_row_is_the_same_error_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.tasks._load.MANY_BYTES", 0)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n{"text": "", "label": "x"}\n')
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows.jsonl:3: column 'text' is empty"):
            load_task(str(path))


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.tasks import _load

    path, read = tmp_path / "rows.jsonl", _load.read_rows
    path.write_text('{"text": "one"}\n' * 3)

    def changed(*given: Any) -> Any:
        path.write_text('{"text": "another"}\n' * 3)
        return read(*given)

    monkeypatch.setattr(_load, "MANY_BYTES", 0)
    monkeypatch.setattr(_load, "read_rows", changed)
    with pytest.raises(DataError, match="changed while it was read"):
        load_task(str(path))


def _stored_folders(make: Callable[[], object], cache: Path) -> int:
    before = len(list((cache / "rows").glob("*/content.json")))
    make()
    return len(list((cache / "rows").glob("*/content.json"))) - before


def test_what_a_cache_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer: Callable[..., Any]
) -> None:
    monkeypatch.setattr("frostline.tasks._load.MANY_BYTES", 0)
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    path, tokenizer = tmp_path / "rows.jsonl", prepare_tokenizer(make_tokenizer())

    def write(word: str) -> None:
        path.write_text("".join(json.dumps({"text": f"{word} {i}"}) + "\n" for i in range(50)))

    def made(tokenizer: Any = tokenizer, length: int = 16, **options: Any) -> int:
        def run() -> None:
            task = load_task(str(path), TaskOptions(**options))
            rows = encode(task, "train", tokenizer, length, "decoder")
            assert [row["input_ids"][:length] for row in rows] == [
                row["input_ids"]
                for row in encode(replace(task, train=list(task.train)), "train", tokenizer, length, "decoder")
            ]

        return _stored_folders(run, tmp_path / "cache")

    write("one")
    assert made() == 2
    assert made() == 0
    tokenizer("x", truncation=True, max_length=2, padding="max_length")  # a call's state is none of its content
    assert made() == 0
    assert made(length=15) == 1
    assert made(prepare_tokenizer(make_tokenizer(begin=True))) == 1
    more = prepare_tokenizer(make_tokenizer())
    more.add_tokens(["one"])
    assert made(more) == 1
    assert made(seed=1) == 2
    write("two")
    assert made() == 2
    assert (tmp_path / "cache" / "rows").stat().st_mode & 0o077 == 0
