"""What only a process of its own can show: how quick help is, a closed pipe, Ctrl-C."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frostline.cli.commands import NAMES
from frostline.records import write_record
from grids import slow_but
from made_records import run
from tiny_files import write_model, write_task

MADE_OF = "import pydantic, rich.console, typer, typer.rich_utils"
"""What help is made of. Beside it, being quick means the same on any CPU: help takes 1.7 times as long."""

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "frostline.run")


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_help_and_report_are_quick_and_import_nothing_heavy(tmp_path: Path) -> None:
    write_record(run().record, tmp_path / "run")
    code = f"""
import sys, time
begun = time.process_time()
{MADE_OF}
most = 3 * (time.process_time() - begun)
from frostline.cli.main import main
for name in (None, *{NAMES!r}):
    begun = time.process_time()
    assert main([name, "--help"] if name else ["--help"]) == 0
    print(f"{{name}} {{time.process_time() - begun:.2f}} s", file=sys.stderr)
    assert time.process_time() - begun < most
assert main(["--version"]) == 0
assert main(["report", {str(tmp_path)!r}]) == 0
loaded = [module for module in {HEAVY!r} if module in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run(python(code), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert f"frostline {name} " in done.stdout


def processor_seconds(command: list[str]) -> float:
    """Processor time, so that a test says the same on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def test_help_of_a_fresh_process_is_quick() -> None:
    processor_seconds(python(MADE_OF))  # what is read from disk once is in memory now
    help_seconds = processor_seconds([sys.executable, "-m", "frostline", "train", "--help"])
    assert help_seconds < 3 * processor_seconds(python(MADE_OF))


@pytest.mark.parametrize("arguments", [["--help"], ["report", "DIR", "--format", "json"]])
def test_a_closed_pipe_is_quiet(tmp_path: Path, arguments: list[str]) -> None:
    write_record(run().record, tmp_path / "run")
    command = [sys.executable, "-m", "frostline", *(str(tmp_path) if a == "DIR" else a for a in arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("stop", slow_but([signal.SIGINT], [signal.SIGINT, signal.SIGTERM]))
def test_stopped_while_training(tmp_path: Path, stop: signal.Signals) -> None:
    model, task, out = write_model(tmp_path / "model"), write_task(tmp_path / "days"), tmp_path / "run"
    # A test runner in the background ignores SIGINT, and its children would too.
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from frostline.cli.main import main
sys.exit(main())
"""
    settings = ["max_steps=100000", "save_steps=5", "per_device_train_batch_size=4", "max_length=16", "threads=1"]
    command = python(code, "train", *settings, "--model", str(model), "--task", str(task), "--out", str(out), "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "checkpoint-5").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=240)
    assert (process.returncode, stdout) == (1, "")
    last = stderr.splitlines()[-1]
    assert last.startswith("interrupted: ") and "use --resume to continue from checkpoint-" in last
    assert "Traceback" not in stderr
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
