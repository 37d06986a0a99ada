"""A run whose cache folder cannot be used ends as one without a cache, whatever it would have kept there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from command_line import frostline
from grids import slow_but
from tiny_files import write_model, write_task


@pytest.mark.parametrize("below", slow_but([""], ["", "/deeper"]))
def test_signals_speeds_and_states_are_not_kept_and_the_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, below: str
) -> None:
    model, task = write_model(tmp_path / "tiny"), write_task(tmp_path / "days")
    settings = [
        *("--model", model, "--task", task, "--strategy", "semantic", "calibrate=true", "bf16=false", "threads=1"),
        *("max_steps=12", "per_device_train_batch_size=4", "max_length=16"),
    ]
    plain = frostline("train", *settings, "--out", tmp_path / "plain", "activation_cache=off", "--json")
    assert plain.status == 0, plain.err
    (tmp_path / "file").write_text("in its place")
    monkeypatch.setenv("FROSTLINE_CACHE", f"{tmp_path / 'file'}{below}")
    with caplog.at_level(logging.WARNING):
        ended = frostline("train", *settings, "--out", tmp_path / "out", "--json")
    assert ended.status == 0, ended.err
    assert any("no activation cache: " in notice and "cannot be used" in notice for notice in ended.document["notices"])
    warned = "".join(record.getMessage() for record in caplog.records if "is not kept" in record.msg)
    assert "/signals/" in warned and "/speed/" in warned
    before, after = (load_file(tmp_path / name / "delta.safetensors") for name in ("plain", "out"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    ended = frostline("train", *settings, "--out", tmp_path / "on", "activation_cache=on")
    assert ended.status == 2 and "activation_cache: on, but " in ended.err.splitlines()[-1]
    assert not (tmp_path / "on" / "delta.safetensors").exists()
