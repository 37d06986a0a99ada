"""Records, studies and checkpoints that are damaged, and names that would act on what shows them: one line, exit 2."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import Ended, frostline
from frostline.records import write_record
from grids import slow_but
from made_records import run
from tiny_files import write_model, write_task

CONTROL = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), 0x2066, 0x2069)}
FORMS = [["--format", form] for form in ("markdown", "json", "csv", "html")]
EVIL = "\x1b]0;x\x07[/red] a|b\n# c <script>alert(1)</script> \x9b2J\u202e"


def put(document: Any, path: str, value: Any) -> None:
    """Set the value at a dotted path; `...` removes it."""
    *places, last = path.split(".")
    for place in places:
        document = document[place]
    if value is ...:
        del document[last]
    else:
        document[last] = value


def strings(value: Any) -> set[str]:
    """Every text in a document."""
    if isinstance(value, dict):
        return strings([*value, *value.values()])
    return (
        {value} if isinstance(value, str) else set().union(*map(strings, value)) if isinstance(value, list) else set()
    )


def changed(folder: Path, path: str, value: Any) -> Path:
    """A folder with the record of a finished run, of which one value is another."""
    write_record(run().record, folder)
    document = json.loads((folder / "run.json").read_text())
    put(document, path, value)
    (folder / "run.json").write_text(json.dumps(document))
    return folder


def reports(folder: Path) -> list[Ended]:
    return [frostline("report", folder, *form) for form in ([], *FORMS)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("total_parameters", "NaN"),
        ("total_parameters", 10**400),
        ("total_parameters", 0),
        ("total_parameters", -5),
        ("total_parameters", ...),
        ("trainable_parameters", 10**400),
        ("measured.train_seconds", 10**400),
        ("measured", ...),
        ("metrics.after", ...),
        ("predicted.flops_ratio", "a"),
        ("predicted.flops_ratio", [1]),
        ("predicted", ...),
        ("data.metric", ...),
        ("config", 3),
        ("seed", "x"),
    ],
)
def test_a_damaged_record_is_one_line(path: str, value: Any, tmp_path: Path) -> None:
    for ended in reports(changed(tmp_path, path, value)):
        if (path, value) == ("measured", ...):  # a run that failed has none either
            assert ended.status == 0
        else:
            assert ended.status == 2 and len(ended.error) <= 300 and "run.json" in ended.error


@pytest.mark.parametrize("place", ["data.metric", "model.name", "data.task", "config.strategy"])
def test_names_in_a_record_only_show_themselves(place: str, tmp_path: Path) -> None:
    folder = changed(tmp_path, place, EVIL)
    terminal, markdown, document, table, _ = ended_of_each = reports(folder)
    for ended in ended_of_each:
        assert ended.status == 0 and not set(ended.out) & CONTROL
    assert "<script>" not in markdown.out.replace("\\<script\\>", "")
    lines = [line for line in markdown.out.splitlines() if line.startswith("|")]
    assert len(lines) == 3 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert not any(line.startswith("#") for line in (*markdown.out.splitlines(), *terminal.out.splitlines()))
    assert len(list(csv.reader(io.StringIO(table.out)))) == 2
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page and not set(page) & CONTROL
    assert "script> \x9b2J\u202e" in json.loads(document.out)["groups"][0]["model"] or EVIL in strings(
        document.document
    )


def test_the_error_of_a_failed_run_only_shows_itself(tmp_path: Path) -> None:
    write_record(run(status="failed", error=EVIL + "x" * 5000).record, tmp_path)
    for ended in reports(tmp_path):
        assert ended.status == 0 and not set(ended.out) & CONTROL


@pytest.mark.parametrize("metric", ["[/red]", "\x1b[2J", "x" * 2000, "a|b\nc"])
def test_a_metric_that_is_not_known_is_shown_as_it_is(metric: str, tmp_path: Path) -> None:
    write_record(run().record, tmp_path)
    ended = frostline("report", tmp_path, "--metric", metric)
    assert ended.status == 2 and "known: accuracy, loss" in ended.error and len(ended.error) <= 300
    assert not set(ended.error) & CONTROL


@pytest.mark.parametrize(
    "text", ["baseline: [1]", "[" * 1000, "- a", "a: !!timestamp x", "baseline: \0", "3", "\ufeff{"]
)
def test_a_damaged_study_file_is_one_line(text: str, tmp_path: Path) -> None:
    write_record(run().record, tmp_path)
    (tmp_path / "study.yaml").write_text(text)
    for ended in reports(tmp_path):
        assert ended.status == 2 and "study.yaml" in ended.error


@pytest.mark.parametrize("name", ["[/x].yaml", "\x1b[2J.yaml", "[bold].yaml"])
def test_a_plan_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    path = tmp_path / name
    assert frostline("plan", model, "--strategy", "bot50", "--out", path).status == 0
    ended = frostline("plan", model, "--strategy", path, "length=[/y]")
    assert ended.status == 2 and "length" in ended.error
    ended = frostline("plan", model, "--strategy", path)
    assert ended.status == 0 and not set(ended.out) & CONTROL


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved its first step, and says that it was stopped."""
    place = tmp_path_factory.mktemp("stopped")
    names = ["--model", write_model(place / "model"), "--task", write_task(place / "days"), "--out", place / "run"]
    assert frostline("train", *names, "--strategy", "bot50", "max_steps=2", "save_steps=1", "threads=1").status == 0
    shutil.rmtree(place / "run" / "checkpoint-2")
    return place


DAMAGES: list[tuple[str, str, Any]] = [
    ("trainer_state.json", "global_step", "x"),
    ("trainer_state.json", "global_step", ...),
    ("trainer_state.json", "log_history", [1]),
    ("trainer_state.json", "best_model_checkpoint", [1]),
    ("trainer_state.json", "unheard", 1),
    ("trainer_state.json", "stateful_callbacks", [3]),
    ("rng_0.json", "torch", ["x"]),
    ("rng_0.json", "python", ...),
    ("rng_0.json", "numpy", 3),
    ("optimizer.json", "groups", ...),
    ("optimizer.json", "numbers", [1]),
    ("optimizer.json", "groups", [{"parameters": 3}]),
    ("schedule.json", "state", 3),
    ("schedule.json", "changes", 10**400),
    ("scheduler.json", "last_epoch", ...),
    ("delta.json", "plan", {"blocks": 3}),
    ("delta.json", "base_tensors", {"a": 1}),
]


@pytest.mark.parametrize(
    ("file", "path", "value"), slow_but({damage[0]: damage for damage in reversed(DAMAGES)}.values(), DAMAGES)
)
def test_a_damaged_checkpoint_is_one_line(file: str, path: str, value: Any, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record |= {"status": "failed", "measured": None, "metrics": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    damaged = tmp_path / "run" / "checkpoint-1" / file
    if (file, path) != ("scheduler.json", "last_epoch"):
        document = json.loads(damaged.read_text())
        put(document, path, value)
        damaged.write_text(json.dumps(document))
    else:
        damaged.write_text("[1]")
    names = ["--model", stopped / "model", "--task", stopped / "days", "--out", tmp_path / "run", "--resume"]
    ended = frostline("train", *names, "--strategy", "bot50", "max_steps=2", "save_steps=1", "threads=1")
    last = ended.err.splitlines()[-1]
    assert ended.status == 2 and last.startswith("error: ") and file.partition(".")[0].partition("_")[0] in last, last
    assert "a fault of frostline" not in last and len(last) <= 300
