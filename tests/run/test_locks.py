"""Two processes, one folder: the second is refused in one line whatever the first does there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from command_line import frostline
from frostline.core.errors import CheckpointError
from frostline.core.files import UNFINISHED, atomic_folder
from frostline.core.locks import LOCK_FILE, new_folder, own_folder
from frostline.run import how_to_go_on
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
    "caching": "frostline.bottom._contents:CachingPass",
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
    deadline = time.monotonic() + 240
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


def test_only_the_user_reads_a_run_and_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path)
    for mask, folders, files in ((0o022, 0o700, 0o600), (0o027, 0o750, 0o640)):
        place = tmp_path / f"{mask:o}"
        monkeypatch.setenv("FROSTLINE_CACHE", str(place / "cache"))
        before = os.umask(mask)
        try:
            assert frostline("train", *given, "--out", place / "runs" / "one").status == 0
            assert os.umask(mask) == mask, "the umask is left alone"
        finally:
            os.umask(before)
        found = [place / "cache", *(place / "cache").rglob("*"), place / "runs", *(place / "runs").rglob("*")]
        modes = {path: path.stat().st_mode & 0o777 for path in found}
        assert {path for path, mode in modes.items() if mode & ~(folders if path.is_dir() else files)} == set()
        assert {mode for path, mode in modes.items() if path.is_dir()} == {folders}


def test_what_a_kill_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    out, given = tmp_path / "out", settings(tmp_path)
    assert frostline("train", *given, "--out", out).status == 0
    whole = {path.relative_to(out) for path in out.rglob("*")}
    (out / "run.json").write_text((out / "run.json").read_text().replace('"finished"', '"running"', 1))
    with suppress(KeyboardInterrupt), atomic_folder(out / "checkpoint-4") as staging:
        (staging / "delta.safetensors").write_bytes(b"torn")
        shutil.copytree(staging, out / staging.name.replace("unfinished.", "unfinished.again"))
        raise KeyboardInterrupt
    (out / f"{UNFINISHED}plan.yaml.abc").write_text("torn")
    assert len(list(out.glob(f"{UNFINISHED}*"))) == 2
    ended = frostline("train", *given, "--out", out)
    assert ended.error.endswith("use another out, or --resume to continue from checkpoint-3")
    assert {path.relative_to(out) for path in out.rglob("*")} == whole
    assert frostline("train", *given, "--out", out, "--resume").status == 0
    assert {path.relative_to(out) for path in out.rglob("*")} == whole


def test_a_killed_merge_leaves_nothing_behind_the_next(tmp_path: Path) -> None:
    for name in ("out", "other"):
        (tmp_path / f"{UNFINISHED}{name}.abc").mkdir()
    with new_folder(tmp_path / "out") as staging:
        (staging / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{UNFINISHED}other.abc", "out"]


def test_how_to_go_on(tmp_path: Path) -> None:
    assert how_to_go_on(tmp_path) == "the same command again: nothing was saved yet"
    (tmp_path / "run.json").write_text("{}")
    assert how_to_go_on(tmp_path) == "--resume to start it again: it saved no checkpoint"
    (tmp_path / "checkpoint-7").mkdir()
    assert how_to_go_on(tmp_path) == "--resume to continue from checkpoint-7"
