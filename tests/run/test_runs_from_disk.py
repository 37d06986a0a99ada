"""A run on rows in files is the run on rows in memory, with the activation cache and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from frostline.bottom import CacheReport
from frostline.run import read_config, train
from frostline.run._training import _write_rows
from frostline.tasks import load_task
from tiny_files import write_model, write_task


def _run(folder: Path, out: str, *settings: str) -> tuple[dict[str, object], dict[str, bytes], str]:
    """What a run's record says of its rows and losses, its delta and its list of rows."""
    if not (folder / "base").exists():
        write_model(folder / "base", "llama")
        write_task(folder / "moods")
    given = ["per_device_train_batch_size=4", "max_length=24", "bf16=false", "strategy=bot50", "generate_rows=0"]
    where = [f"model={folder / 'base'}", f"task={folder / 'moods'}", f"out={folder / out}"]
    record = train(read_config(None, [*given, *where, *settings]))
    assert record.metrics is not None and record.measured is not None
    assert list(record.measured.seconds)[:3] == ["reading", "tokenizing", "loading"]
    losses = [entry["loss"] for entry in record.metrics.history if "loss" in entry]
    told = {"data": record.data, "losses": losses, "after": record.metrics.after}
    if "activation_cache=off" in settings:  # else a later run finds the states of an earlier one
        told["predicted"] = record.predicted
    tensors = load_file(folder / out / "delta.safetensors")
    return told, {name: t.numpy().tobytes() for name, t in tensors.items()}, (folder / out / "rows.json").read_text()


@pytest.mark.parametrize(
    "settings",
    [("activation_cache=on",), pytest.param(("activation_cache=off", "max_steps=5"), marks=pytest.mark.slow)],
)
def test_the_same_run(settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _run(tmp_path, "memory", *settings, "num_train_epochs=2", "logging_steps=1")
    monkeypatch.setattr("frostline.tasks._load.MANY_BYTES", 0)
    monkeypatch.setattr("frostline.rows._stored.BATCH", 3)
    for out in ("cold", "warm"):
        assert _run(tmp_path, out, *settings, "num_train_epochs=2", "logging_steps=1") == memory


def test_no_key_is_computed_where_a_cache_cannot_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.tasks._load.MANY_BYTES", 0)
    seen: list[str] = []
    monkeypatch.setattr("frostline.bottom._contents.Contents.key", lambda self, row: seen.append("key"))
    reports: list[CacheReport] = []
    from frostline.bottom import CacheSession

    decide = CacheSession.decide
    monkeypatch.setattr(CacheSession, "decide", lambda self: reports.append(decide(self)) or reports[-1])
    _run(tmp_path, "run", "max_steps=1", "activation_cache=auto")
    assert not seen and reports and not reports[0].used and "never reaches" in reports[0].reason


def test_the_list_of_rows_is_indented_json(tmp_path: Path) -> None:
    write_task(tmp_path / "moods")
    task = load_task(str(tmp_path / "moods"))
    _write_rows(task, tmp_path)
    ids = {"train": [e.id for e in task.train], "eval": [e.id for e in task.eval], "questions": []}
    assert (tmp_path / "rows.json").read_text() == json.dumps(ids, indent=2, ensure_ascii=False) + "\n"
