"""Run a script, or `frostline`, in several processes that train together (gloo), within a hard time limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
HANGS = -999
"""The status of a process that was still there when the time was over."""


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    status: int
    out: str
    err: str


def in_processes(
    command: Sequence[str | Path],
    count: int = 2,
    *,
    seconds: float = 240,
    after: float = 20,
    kill: tuple[int, Path] | None = None,
    launched: bool = True,
) -> list[Done]:
    """Run `python COMMAND` in `count` processes, as a launcher starts them.

    Args:
        command: what follows `python`.
        count: how many processes.
        seconds: how long all of them may take.
        after: how long the others may go on after one has failed.
        kill: a rank, and the file at whose appearance it is killed.
        launched: tell the processes what a launcher tells them; False: the command is a launcher.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(TESTS), str(TESTS / "engine"), str(TESTS / "run"), *sys.path]
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    if launched:
        counts = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared |= {**counts, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        files = [tuple(Path(folder, f"{r}.{end}").open("w+") for end in ("out", "err")) for r in range(count)]  # noqa: SIM115
        running = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if launched else {})},
                stdout=out,
                stderr=err,
            )
            for rank, (out, err) in enumerate(files)
        ]
        end, hanging = time.monotonic() + seconds, set[int]()
        while any(process.poll() is None for process in running):
            if kill is not None and kill[1].exists():
                running[kill[0]].send_signal(signal.SIGKILL)
                kill = None
            if any(process.returncode for process in running):
                end = min(end, time.monotonic() + after)
            if time.monotonic() > end:
                hanging = {rank for rank, process in enumerate(running) if process.poll() is None}
                for rank in hanging:
                    running[rank].kill()
            time.sleep(0.05)
        found = []
        for rank, (process, pair) in enumerate(zip(running, files, strict=True)):
            texts = []
            for file in pair:
                file.seek(0)
                texts.append(file.read())
                file.close()
            found.append(Done(HANGS if rank in hanging else process.returncode, *texts))
    return found


def script_in_processes(text: str, folder: Path, *arguments: str, count: int = 2, **options: object) -> list[Done]:
    """The same for the text of a script, which gets `folder` and the arguments. All of its processes succeed."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    done = in_processes([script, folder, *arguments], count, **options)  # type: ignore[arg-type]
    for rank, one in enumerate(done):
        assert one.status == 0, f"process {rank}: status {one.status}\n{one.err[-6000:]}"
    return done
