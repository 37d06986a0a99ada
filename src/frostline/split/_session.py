"""The main process of a split training: it starts all other processes, reads their messages, and ends them."""

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
from frostline.split._process import RESULT_FILE, Failed, Finished, Message, Round, run_process
from frostline.split._protocol import Kind

PRELOADED = ["frostline.core.quiet", run_process.__module__]
GRACE = 5.0
"""Seconds to wait, after a process has lost another one, for a message that names the cause."""


@dataclass
class _Worker:
    """One process, our end of the pipe to it, and its last message."""

    name: str
    process: BaseProcess
    pipe: Connection
    message: Finished | Failed | None = None

    def listen(self) -> Message:
        """The next message of the process. Raises `TrainingError` when it has ended without one."""
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):
            self.process.join(GRACE)
            ended = _how_it_ended(self.process.exitcode)
            raise TrainingError(f"{self.name} {ended}, and split training cannot continue without it") from None


class Session:
    """The server and the clients of a job, one process each. They end with the `with` block at the latest."""

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
                with suppress(OSError):  # it has ended: `rounds` reports that
                    worker.pipe.send((self._job, own))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()  # works for a stopped process too, and a finished one has ended already
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def rounds(self) -> Iterator[float]:
        """The loss of every round, as soon as it is over.

        Raises the error of a process that failed, and `TrainingError` for one that ended or does not answer.
        """
        while silent := {worker.pipe: worker for worker in self._workers if worker.message is None}:
            for pipe in wait(list(silent), self._patience()):
                worker = silent[cast(Connection, pipe)]
                message = worker.listen()
                if isinstance(message, Round):
                    yield message.loss
                else:
                    self._note(worker, message)
            if self._patience() == 0.0:
                break
        for _, worker, failed in self._lost:
            raise TrainingError(f"{worker.name} gets no answer from another process: {failed.line}")

    @property
    def trained(self) -> dict[str, Tensor]:
        """After the last round: the trained tensors of both parts, by name."""
        return read_tensors(self._job.folder / RESULT_FILE, "trained tensors")

    @property
    def sent(self) -> dict[str, int]:
        """After the last round: the bytes that all processes sent, by kind."""
        total: Counter[str] = Counter(dict.fromkeys(Kind, 0))
        for finished in self._finished().values():
            total.update(finished.sent)
        return {str(kind): count for kind, count in total.items()}

    @property
    def peak_memory_bytes(self) -> dict[str, int]:
        """After the last round: name of each process -> peak of its private memory above that at its start."""
        return {name: finished.peak_memory_bytes for name, finished in self._finished().items()}

    def _finished(self) -> dict[str, Finished]:
        return {worker.name: worker.message for worker in self._workers if isinstance(worker.message, Finished)}

    def _start(self, name: str, threads: int) -> None:
        # A fork server imports the libraries once for all processes, and has no threads or devices of this process.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        here, there = context.Pipe()
        process = context.Process(target=run_process, args=(threads, there), name=name, daemon=True)
        process.start()
        there.close()  # so that the pipe closes when the process ends
        self._workers.append(_Worker(name, process, here))

    def _note(self, worker: _Worker, message: Finished | Failed) -> None:
        worker.message = message
        if not isinstance(message, Failed):
            return
        if message.lost:  # the process that is the cause may still report it
            self._lost.append((time.monotonic(), worker, message))
            return
        error = (
            TrainingError(f"{worker.name}: {message.line}") if message.error is None else message.error(message.line)
        )
        error.add_note(f"In {worker.name}:\n{message.trace}")
        raise error

    def _patience(self) -> float | None:
        """Seconds to wait for more messages; None while no process has lost another."""
        return max(0.0, self._lost[0][0] + GRACE - time.monotonic()) if self._lost else None


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
