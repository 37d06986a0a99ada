"""A real study of a tiny model: killed, called again, finished, called once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from frostline.core.errors import UserError
from frostline.run._device import bfloat16_is_fast
from frostline.study import read_study, run_study
from frostline.study._runner import Result
from tiny_files import write_model, write_task


def run(path: Path, out: Path, *overrides: str) -> tuple[list[Result], str]:
    console = Console(width=1000, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file:
        results = run_study(read_study(path, overrides), out, console)
    return results, console.export_text()


@pytest.mark.slow
def test_killed_and_called_again_it_goes_on_where_it_was(tmp_path: Path) -> None:
    study = {
        "models": [str(write_model(tmp_path / "tiny"))],
        "tasks": [str(write_task(tmp_path / "days"))],
        "strategies": ["all", {"name": "bot50", "label": "broken", "learning_rate": 1e30}],
        "seeds": [1],
        "config": {"max_steps": 60, "save_steps": 2, "per_device_train_batch_size": 4, "max_length": 16, "threads": 1},
    }
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(study))
    cell = out / "tiny" / "days" / "all" / "seed1"

    process = subprocess.Popen(
        [sys.executable, "-m", "frostline", "study", str(path), "--out", str(out)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (cell / "checkpoint-2").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the study ended before it could be killed"
    runs = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(runs, timeout=240)
    assert runs and not left, "the run notices, and is gone"
    assert json.loads((cell / "run.json").read_text())["status"] == "running"
    measured_before_the_kill = (cell / "before.json").stat().st_mtime_ns

    results, said = run(path, out)
    finished, broken = results
    assert finished.error is None and finished.record is not None
    assert finished.record.status == "finished" and finished.record.config["max_steps"] == 60
    # Quality before training is not measured again by a run that goes on from a checkpoint.
    assert (cell / "before.json").stat().st_mtime_ns == measured_before_the_kill
    assert "resuming a run that was interrupted" in said
    assert broken.record is None and broken.error is not None and "use a lower learning_rate" in broken.error
    assert broken.error in said

    written = (cell / "run.json").stat().st_mtime_ns
    (only,), said = run(path, out, "strategies=[all]")
    assert only.record == finished.record and (cell / "run.json").stat().st_mtime_ns == written
    assert "1 of 1 runs recorded already" in said

    with pytest.raises(
        UserError, match=r"holds a finished run with per_device_train_batch_size=4, and the study asks for 8"
    ):
        run(path, out, "strategies=[all]", "config.per_device_train_batch_size=8")


def test_a_precision_that_is_not_given_is_that_of_the_run(tmp_path: Path) -> None:
    """A study may go on on another machine: without `bf16` its runs are in bfloat16 on some and not on others."""
    study = {
        "models": [str(write_model(tmp_path / "tiny"))],
        "tasks": [str(write_task(tmp_path / "days"))],
        "strategies": ["all"],
        "seeds": [1],
        "config": {"max_steps": 1, "per_device_train_batch_size": 4, "max_length": 16, "threads": 1},
    }
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(study))
    (first,), _ = run(path, out, "config.bf16=true")
    assert first.record is not None and first.record.versions["autocast"] == "bfloat16"
    imitated = [notice for notice in first.record.notices if notice.startswith("bf16: this machine has no bfloat16")]
    assert len(imitated) == (not bfloat16_is_fast())
    (again,), said = run(path, out)
    assert again.record == first.record and "1 of 1 runs recorded already" in said
    with pytest.raises(UserError, match="holds a finished run with bf16=True, and the study asks for False"):
        run(path, out, "config.bf16=false")
