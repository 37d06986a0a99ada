"""A split training seen from the process that starts it: it starts the others, listens, and ends them all."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

import torch
from torch import Tensor

from frostline.checkpoints import read_tensors
from frostline.core.errors import TrainingError
from frostline.split._job import ClientRows, Job
from frostline.split._process import RESULT_FILE, Failed, Finished, Round, Told, run_process
from frostline.split._protocol import Kind

PRELOADED = ["frostline.core.quiet", run_process.__module__]
GRACE = 5.0
"""Seconds in which the process that others have lost may still tell why, or be seen dead."""


@dataclass
class _Worker:
    """One process, the end of the pipe that it tells through, and what it told last."""

    name: str
    process: BaseProcess
    pipe: Connection
    told: Finished | Failed | None = None

    def listen(self) -> Told:
        """What it tells next. Raises `TrainingError` when it has died without a word."""
        try:
            return cast(Told, self.pipe.recv())
        except (EOFError, OSError):
            self.process.join(GRACE)
            ended = _how_it_ended(self.process.exitcode)
            raise TrainingError(f"{self.name} {ended}: split training cannot go on without it") from None


class Session:
    """The server and the clients of a job, one process each, from `with` to its end: none outlives it."""

    def __init__(self, job: Job, clients: Sequence[ClientRows]) -> None:
        self._job, self._clients = job, clients
        self._workers: list[_Worker] = []
        self._lost: list[tuple[float, _Worker, Failed]] = []

    def __enter__(self) -> Session:
        threads = torch.get_num_threads()
        each = max(1, threads // len(self._clients))
        try:
            self._start("the server", threads)
            for client in self._clients:
                self._start(f"client {client.client + 1} of {len(self._clients)}", each)
            for worker, own in zip(self._workers, (None, *self._clients), strict=True):
                with suppress(OSError):  # it has died: `rounds` tells
                    worker.pipe.send((self._job, own))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # a finished one has gone already, and a stopped one would not hear less
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def rounds(self) -> Iterator[float]:
        """The loss of every round, as it comes.

        Raises the error of a process that failed, and `TrainingError` for one that died or does not answer.
        """
        while silent := {worker.pipe: worker for worker in self._workers if worker.told is None}:
            for pipe in wait(list(silent), self._patience()):
                worker = silent[cast(Connection, pipe)]
                told = worker.listen()
                if isinstance(told, Round):
                    yield told.loss
                else:
                    self._note(worker, told)
            if self._patience() == 0.0:
                break
        for _, worker, failed in self._lost:
            raise TrainingError(f"{worker.name} has lost the others: {failed.line}")

    @property
    def trained(self) -> dict[str, Tensor]:
        """After the last round: what trained in both parts, by name."""
        return read_tensors(self._job.folder / RESULT_FILE, "trained tensors")

    @property
    def sent(self) -> dict[str, int]:
        """After the last round: the bytes that went over all wires, by kind."""
        total: Counter[str] = Counter(dict.fromkeys(Kind, 0))
        for finished in self._finished().values():
            total.update(finished.sent)
        return {str(kind): count for kind, count in total.items()}

    @property
    def peak_memory_bytes(self) -> dict[str, int]:
        """After the last round: each process's peak of private memory above its start, by the process's name."""
        return {name: finished.peak_memory_bytes for name, finished in self._finished().items()}

    def _finished(self) -> dict[str, Finished]:
        return {worker.name: worker.told for worker in self._workers if isinstance(worker.told, Finished)}

    def _start(self, name: str, threads: int) -> None:
        # A server of forks imports the libraries once for all processes, and has none of this one's threads or devices.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        here, there = context.Pipe()
        process = context.Process(target=run_process, args=(threads, there), name=name, daemon=True)
        process.start()
        there.close()  # so that the pipe ends with the process
        self._workers.append(_Worker(name, process, here))

    def _note(self, worker: _Worker, told: Finished | Failed) -> None:
        worker.told = told
        if not isinstance(told, Failed):
            return
        if told.lost:  # who is to blame may be about to tell
            self._lost.append((time.monotonic(), worker, told))
            return
        error = TrainingError(f"{worker.name}: {told.line}") if told.error is None else told.error(told.line)
        error.add_note(f"In {worker.name}:\n{told.trace}")
        raise error

    def _patience(self) -> float | None:
        """Seconds to wait for more to be told; None while no process has lost another."""
        return max(0.0, self._lost[0][0] + GRACE - time.monotonic()) if self._lost else None


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
