"""What a record holds for reports: the command that makes the run, the time of each entry, the signals."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from command_line import frostline
from frostline.cli.train import split_settings
from frostline.records import RunRecord
from frostline.run import RunConfig, read_config, train
from frostline.run._command import command_line
from tiny_files import write_model, write_task


def read_back(command: str) -> RunConfig:
    """The config that a command line gives."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("frostline", "train")
    options: dict[str, Any] = {}
    while words and words[0].startswith("--"):
        options[words[0].removeprefix("--")] = words[1]
        words = words[2:]
    options |= {"seed": int(options["seed"])} if "seed" in options else {}
    path, overrides = split_settings(words)
    assert path is None
    return read_config(None, overrides, **options)


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "bot50", "seed": 7, "out": "runs/a b"},
        {"strategy": "auto", "budget": {"time": 0.4, "memory": "8GB"}, "learning_rate": 5e-5},
        {"strategy": "semantic", "strategy_options": {"rows": 64}, "max_steps": 10, "num_train_epochs": 1e-3},
        {"data": {"labels": ["no", "1", "it's; $(x)", "größer"], "columns": {"text": "a b"}, "max_train_rows": 5}},
        {"training": {"neftune_noise_alpha": 5, "lr_scheduler_kwargs": {"num_cycles": 0.5}}, "bf16": False},
        {"report_to": ["tensorboard"], "optim": "flora", "threads": None, "activation_cache_limit": "2GB"},
        {"data": {"delimiter": "semicolon", "subset": "null", "eval_share": 0.25}, "lr_scheduler_type": "linear"},
    ],
)
def test_the_command_makes_the_same_run(given: dict[str, Any]) -> None:
    config = RunConfig.model_validate({"model": "some/model", "task": "rows.jsonl", **given})
    command = command_line(config)
    found = read_back(command)
    assert found == config, command
    assert found.model_dump(exclude_unset=True) == config.model_dump(exclude_unset=True), "and says nothing more"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model")
    write_task(folder / "days")
    return folder


def config(place: Path, out: Path, **given: Any) -> RunConfig:
    settings = {"model": str(place / "model"), "task": str(place / "days"), "out": str(out), "threads": 1}
    settings |= {"max_steps": 4, "per_device_train_batch_size": 4, "max_length": 16, "logging_steps": 1}
    return read_config(None, **(settings | given))


def seconds(record: RunRecord) -> list[float]:
    assert record.metrics is not None
    return [entry["seconds"] for entry in record.metrics.history]


def test_a_run_logs_its_time(place: Path, tmp_path: Path) -> None:
    record = train(config(place, tmp_path / "run", strategy="bot50", eval_steps=2))
    assert record.measured is not None
    times = seconds(record)
    assert len(times) == 7, "four steps, two evaluations, the end"
    assert times == sorted(times) and times[0] > record.measured.caching_seconds > 0
    assert times[-1] == pytest.approx(record.measured.train_seconds, abs=0.25), "the same clock as train_seconds"
    assert record.command == command_line(config(place, tmp_path / "run", strategy="bot50", eval_steps=2))


def test_a_resumed_run_goes_on_with_its_time(place: Path, tmp_path: Path) -> None:
    settings = config(place, tmp_path / "run", strategy="top50", save_steps=2, save_total_limit=5)
    before = train(settings)
    path = tmp_path / "run" / "run.json"
    document = json.loads(path.read_text()) | {"status": "failed", "measured": None, "metrics": None}
    path.write_text(json.dumps(document))
    for entry in (tmp_path / "run").glob("checkpoint-4/*"):
        entry.unlink()
    (tmp_path / "run" / "checkpoint-4").rmdir()
    state_file = tmp_path / "run" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(state_file.read_text())
    assert [entry["seconds"] for entry in state["log_history"]] == seconds(before)[:2]
    state["log_history"][-1]["seconds"] = 1000.0
    state_file.write_text(json.dumps(state))
    after = train(settings, resume=True)
    assert seconds(after)[1] == 1000 and all(1000 < later < 1100 for later in seconds(after)[2:])


def test_a_run_keeps_the_signals_that_chose_its_plan(place: Path, tmp_path: Path) -> None:
    options = ("--model", place / "model", "--task", place / "days", "--out", tmp_path / "run", "--json")
    ended = frostline("train", *options, "--strategy", "semantic", "max_steps=1", "max_length=16", "threads=1")
    assert ended.status == 0, ended.err
    signals = ended.document["signals"]
    assert signals["rows"] > 0 and all(len(values) == 4 for values in signals["signals"].values())
    page = frostline("report", tmp_path / "run", "--format", "html")
    assert page.status == 0 and 'id="g0-signals-0"' in (tmp_path / "run" / "report.html").read_text()
    plain = ("--out", tmp_path / "two", "--json", "--strategy", "bot50", "max_steps=1", "max_length=16")
    assert frostline("train", *options[:4], *plain).document["signals"] is None
