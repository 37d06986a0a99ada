"""The tie between a study and its run, with small processes in the run's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from frostline.study.lifeline import Child

# The run's end, loaded by path: the package imports torch.
RUN_END = """
import importlib.util
spec = importlib.util.spec_from_file_location("lifeline", {path!r})
lifeline = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lifeline)
lifeline.hold()
"""
LIFELINE = Path(__file__).parents[2] / "src" / "frostline" / "study" / "lifeline.py"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", RUN_END.format(path=str(LIFELINE)) + code]


def test_a_child_that_ends_well_has_nothing_to_say() -> None:
    assert Child(python("print('to nowhere')")).wait() is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("lifeline.say('no such model'); raise SystemExit(2)", "no such model"),
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (out of memory?)"),
    ],
)
def test_why_a_child_failed(code: str, expected: str) -> None:
    assert Child(python(code)).wait() == expected


def test_an_interrupt_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(python("import time; time.sleep(60)"))
    process = child._process
    waits = iter([KeyboardInterrupt()])
    wait = process.wait

    def interrupted(timeout: float | None = None) -> int:
        for error in waits:
            raise error
        return wait(0.1 if timeout == 2 else timeout)

    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.wait()
    assert process.poll() is not None


def test_the_child_ends_when_the_study_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    run = python(
        f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    study = subprocess.Popen(python(f"lifeline.Child({run!r}).wait()"))
    for _ in range(200):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.05)
    child = psutil.Process(int(pid_file.read_text()))
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone
