"""Two processes, one folder: the second is refused in one line whatever the first does there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import frostline
from frostline.core.errors import CheckpointError
from frostline.core.locks import LOCK_FILE, new_folder, own_folder
from tiny_files import write_model, write_task

# A run that stops when it first comes to each phase, says so, and goes on when it is told.
STEPWISE = """
import importlib, json, sys, time
from pathlib import Path
from frostline.cli.main import main

folder = Path(sys.argv[1])

def stepwise(phase, place):
    module, _, name = place.partition(":")
    holder = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        holder = getattr(holder, part)
    real = getattr(holder, last)

    def paused(*args, **kwargs):
        (folder / f"at {phase}").touch()
        while not (folder / f"on from {phase}").exists():
            time.sleep(0.01)
        return real(*args, **kwargs)

    setattr(holder, last, paused)

for phase, place in json.loads(sys.argv[2]).items():
    stepwise(phase, place)
raise SystemExit(main(sys.argv[3:]))
"""
PHASES = {
    "reading the data": "frostline.run._training:read_data",
    "loading the model": "frostline.run._prepare:load_model",
    "evaluating": "frostline.run._training:evaluate",
    "caching": "frostline.bottom._session:caching_pass",
    "training": "frostline.engine:Trainer.training_step",
    "a checkpoint": "frostline.engine._saving:save_optimizer",
    "the delta": "frostline.run._training:save_delta",
    "the record": "frostline.run._training:RunMetrics",
}


def settings(folder: Path) -> list[str]:
    model, task = write_model(folder / "tiny"), write_task(folder / "days")
    return [
        *("--model", str(model), "--task", str(task), "--strategy", "bot50"),
        *("max_steps=3", "save_steps=2", "per_device_train_batch_size=4", "max_length=16", "threads=1"),
        *("activation_cache=on", "bf16=false"),
    ]


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 40
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists() and process.poll() is None, path


def test_a_second_process_is_refused_in_every_phase(tmp_path: Path) -> None:
    out, given = tmp_path / "out", settings(tmp_path)
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({"models": [given[1]], "tasks": [given[3]], "strategies": ["all"]}))
    command = [sys.executable, "-c", STEPWISE, str(tmp_path), json.dumps(PHASES), "train", *given, "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for phase in PHASES:
            wait_for(tmp_path / f"at {phase}", first)
            held = sorted(out.rglob("*"))
            for second in (
                ["train", *given, "--out", out],
                ["train", *given, "--out", out, "--resume"],
                ["study", study, "--out", out],
            ):
                ended = frostline(*second)
                assert ended.status == 2, phase
                assert ended.error == (
                    f"error: another process works in {out}: wait until it has ended (or end it), or use another folder"
                )
            assert sorted(out.rglob("*")) == held, "nothing is written there"
            if phase != list(PHASES)[-1]:
                (tmp_path / f"on from {phase}").touch()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    # The lock of a process that was killed holds nobody up.
    ended = frostline("train", *given, "--out", out, "--resume", "--json")
    assert ended.status == 0 and ended.document["status"] == "finished"
    assert not (out / LOCK_FILE).exists()


def test_a_checkpoint_is_written_by_one_process(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out) as staging:
        (staging / "file").write_text("whole")
        with pytest.raises(CheckpointError, match="another process works in"), new_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["file"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="is not empty"), new_folder(out):
        pass


def test_a_folder_that_was_refused_is_not_left(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), own_folder(out):
        assert out.is_dir()
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    out.mkdir(parents=True)
    with own_folder(out):
        pass
    assert out.is_dir() and not any(out.iterdir()), "a folder that was there stays"
