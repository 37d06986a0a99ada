from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from frostline.core.errors import UserError
from frostline.tasks import TASKS, Columns, TaskKind, TaskOptions, load_task, majority_share
from packages import install

Write = Callable[..., Path]
ENTAILMENT = ["rte", "cb", "wnli", "qnli", "mnli"]


@pytest.fixture
def shared_data(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_DATA", str(data_dir))
    return data_dir


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FROSTLINE_DATA", raising=False)


def _first_row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])
    return row


def test_the_built_in_tasks() -> None:
    math = ["math-mix", "svamp", "aqua", "addsub", "multiarith", "singleeq", "gsm8k"]
    commonsense = ["boolq", "piqa", "siqa", "winogrande", "arc-e", "arc-c", "obqa"]
    assert list(TASKS) == sorted([*ENTAILMENT, "webnlg", *math, *commonsense])


@pytest.mark.parametrize(
    ("name", "sizes", "labels", "majority"),
    [
        ("rte", (2490, 277), 2, 146 / 277),
        ("cb", (250, 56), 3, 28 / 56),
        ("wnli", (635, 71), 2, 40 / 71),
        ("qnli", (3200, 2263), 2, 1148 / 2263),
        ("mnli", (3200, 2000), 3, 717 / 2000),
    ],
)
def test_entailment_tasks_from_the_local_copies(
    name: str, sizes: tuple[int, int], labels: int, majority: float, shared_data: Path
) -> None:
    task = load_task(name)
    assert (task.name, task.kind, task.metric) == (name, TaskKind.CLASSIFICATION, "accuracy")
    assert (len(task.train), len(task.eval)) == sizes
    assert len(task.labels) == labels
    assert task.source == str(shared_data / "nli" / name)
    assert majority_share(task) == pytest.approx(majority)
    first = _first_row(shared_data / "nli" / name / "dev.jsonl")
    example = task.eval[0]
    assert (example.text, example.pair) == (first["premise"], first["hypothesis"])
    assert task.labels[example.label or 0] == first["label"]


def test_webnlg_from_the_local_copy(shared_data: Path) -> None:
    task = load_task("webnlg")
    assert (task.kind, task.metric, task.generate_rows) == (TaskKind.GENERATION, "bleu", 200)
    assert (len(task.train), len(task.eval)) == (6940, 872)
    row = _first_row(shared_data / "gen/webnlg2017/train.jsonl")
    example = task.train[0]
    assert example.text == row["source"] + "\n"
    assert example.target == row["targets"][0]
    assert example.references == tuple(row["targets"])
    assert len(load_task("webnlg", TaskOptions(eval="test")).eval) == 1862


def test_options_apply_to_built_in_tasks(shared_data: Path) -> None:
    task = load_task("rte", TaskOptions(max_train_rows=10, max_eval_rows=5))
    assert (len(task.train), len(task.eval)) == (10, 5)
    for fixed in (TaskOptions(kind=TaskKind.LANGUAGE), TaskOptions(columns=Columns(text="a")), TaskOptions(subset="x")):
        with pytest.raises(UserError, match=r"data\.\w+: it is fixed for a built-in task"):
            load_task("rte", fixed)


def test_a_folder_without_the_task_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"no train.jsonl in {tmp_path}/nli/rte, the folder of this task under FROSTLINE_DATA"
    ):
        load_task("rte")


def test_unknown_name_says_what_would_be_right(no_data: None) -> None:
    with pytest.raises(UserError) as caught:
        load_task("rta")
    assert str(caught.value) == (
        f"unknown task 'rta': did you mean 'rte'? known: {', '.join(TASKS)}; "
        "or use the path of a .jsonl, .json, .csv, .tsv, .parquet file, or a hub data set 'owner/name'"
    )


@pytest.mark.parametrize("name", [*ENTAILMENT, "webnlg"])
def test_offline_without_local_copies_is_one_clear_line(name: str, no_data: None) -> None:
    with pytest.raises(UserError, match="go online, or set FROSTLINE_DATA to a folder with local copies") as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


def test_offline_hub_data_set_may_have_been_meant_as_a_path(no_data: None) -> None:
    with pytest.raises(UserError, match="give an existing file: there is no 'data/mine' here"):
        load_task("data/mine")


# The hub's column names and label numbers, in data sets made on the spot.


@pytest.fixture
def hub(no_data: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Make `datasets.load_dataset` answer with the given splits; returns the list of its calls."""

    def hub(splits: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]) -> list[Any]:
        calls: list[Any] = []

        def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
            calls.append((path, name, options))
            return datasets.DatasetDict(
                {
                    split: datasets.Dataset.from_list(rows, features=datasets.Features(features))
                    for split, (rows, features) in splits.items()
                }
            )

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return hub


TEXT = datasets.Value("string")


@pytest.mark.parametrize(
    ("name", "columns", "names", "dev"),
    [
        ("rte", ("sentence1", "sentence2"), ["entailment", "not_entailment"], "validation"),
        ("wnli", ("sentence1", "sentence2"), ["not_entailment", "entailment"], "validation"),
        ("qnli", ("sentence", "question"), ["entailment", "not_entailment"], "validation"),
        ("mnli", ("premise", "hypothesis"), ["entailment", "neutral", "contradiction"], "validation_matched"),
        ("cb", ("premise", "hypothesis"), ["entailment", "contradiction", "neutral"], "validation"),
    ],
)
def test_entailment_tasks_from_the_hub(
    name: str, columns: tuple[str, str], names: list[str], dev: str, hub: Callable[..., list[Any]]
) -> None:
    text, pair = columns
    features = {text: TEXT, pair: TEXT, "label": datasets.ClassLabel(names=names), "idx": datasets.Value("int32")}
    rows = [{text: "p", pair: "h", "label": i, "idx": i} for i in range(len(names))]
    calls = hub({"train": (rows, features), dev: (rows[1:], features)})
    task = load_task(name)
    assert [task.labels[e.label or 0] for e in task.train] == names
    assert {(e.text, e.pair) for e in task.train} == {("p", "h")}
    assert [e.id for e in task.eval] == [f"eval:{i}" for i in range(len(names) - 1)]
    (path, subset, options) = calls[0]
    if name == "cb":
        assert (path, options["revision"]) == ("aps/super_glue", "refs/convert/parquet")
        assert options["data_files"]["train"] == "cb/train/*.parquet"
    else:
        assert (path, subset, options["data_files"]) == ("nyu-mll/glue", name, None)


def test_the_hubs_large_tasks_are_drawn_to_the_protocols_size(hub: Callable[..., list[Any]]) -> None:
    features = {
        "sentence": TEXT,
        "question": TEXT,
        "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
    }
    rows = [{"sentence": f"s{i}", "question": "q", "label": i % 2} for i in range(3300)]
    hub({"train": (rows, features), "validation": (rows[:2], features)})
    assert len(load_task("qnli").train) == 3200
    assert len(load_task("qnli", TaskOptions(max_train_rows=10_000)).train) == 3300


def test_a_split_without_answers_is_an_error(hub: Callable[..., list[Any]]) -> None:
    features = {
        "sentence1": TEXT,
        "sentence2": TEXT,
        "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
    }
    rows = [{"sentence1": "p", "sentence2": "h", "label": label} for label in (0, -1)]
    hub({"train": (rows[:1], features), "test": (rows, features)})
    with pytest.raises(UserError, match=r"nyu-mll/glue/rte\[test\]:row 2: column 'label' must be text, found nothing"):
        load_task("rte", TaskOptions(eval="test"))
    with pytest.raises(UserError, match="'nyu-mll/glue/rte' has no split 'validation': use one of train, test"):
        load_task("rte")


def test_webnlg_from_the_hub_is_the_local_copy(
    hub: Callable[..., list[Any]], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_task("webnlg", TaskOptions(train="dev", eval="dev"))
    features = {
        "category": TEXT,
        "modified_triple_sets": {"mtriple_set": datasets.List(datasets.List(TEXT))},
        "lex": {"lid": datasets.List(TEXT), "text": datasets.List(TEXT)},
    }
    rows = [
        {
            "category": "c",
            "modified_triple_sets": {"mtriple_set": [example.text.rstrip("\n").split(" && ")]},
            "lex": {"lid": ["i"] * len(example.references), "text": list(example.references)},
        }
        for example in local.eval[:50]
    ]
    silent = {**rows[0], "lex": {"lid": [], "text": []}}
    hub({"train": ([*rows, silent], features), "dev": (rows, features)})
    monkeypatch.delenv("FROSTLINE_DATA")
    task = load_task("webnlg")
    assert list(task.eval) == list(local.eval[:50])
    assert len(task.train) == 50


def test_any_hub_data_set_by_column_mapping(hub: Callable[..., list[Any]]) -> None:
    features = {"body": TEXT, "label": datasets.ClassLabel(names=["neg", "pos"])}
    rows = [{"body": f"b{i}", "label": i % 2} for i in range(20)]
    calls = hub({"train": (rows, features)})
    options = TaskOptions(columns=Columns(text="body"), subset="small")
    task = load_task("someone/reviews", options)
    assert calls[0][:2] == ("someone/reviews", "small")
    assert (task.name, task.source, task.labels) == ("reviews", "someone/reviews", ("neg", "pos"))
    assert (len(task.train), len(task.eval)) == (18, 2)
    hub({"train": (rows, features), "validation": (rows[:3], features)})
    assert [e.text for e in load_task("someone/reviews", options).eval] == ["b0", "b1", "b2"]


OURS = """
from frostline.tasks import Example, Task, TaskKind
def ours(options):
    rows = [Example('train:0', 'x')]
    return Task('', TaskKind.LANGUAGE, rows, rows, 'loss')
"""


def test_another_package_adds_a_task_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    install(tmp_path, "thirdparty", "frostline.tasks", {"ours": "thirdparty:ours"}, OURS)
    monkeypatch.syspath_prepend(tmp_path)
    assert "ours" in TASKS
    assert load_task("ours").name == "ours"
