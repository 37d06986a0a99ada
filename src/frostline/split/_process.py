"""One process of a split training: it joins the others, does its part, and reports to the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from safetensors.torch import save_file

from frostline.checkpoints import quiet_libraries
from frostline.core.errors import FrostlineError, first_line
from frostline.core.seeding import derive_seed
from frostline.engine import MemoryMeter
from frostline.split._client import run_client
from frostline.split._connection import join_clients, join_server
from frostline.split._job import ClientRows, Job
from frostline.split._parts import LowerPart, UpperPart
from frostline.split._protocol import Peer, PeerLost
from frostline.split._server import run_server

RESULT_FILE = "result.safetensors"
SERVER = 0


@dataclass(frozen=True)
class Round:
    """Message: a round is over, with this loss."""

    loss: float


@dataclass(frozen=True)
class Finished:
    """Message: a process has finished. It has the bytes that it sent, by kind, and its peak of private memory."""

    sent: dict[str, int]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """Message: a process failed. `lost` says that another process is the cause."""

    error: type[FrostlineError] | None
    line: str
    trace: str
    lost: bool


Message = Round | Finished | Failed


def run_process(threads: int, parent: Connection) -> None:
    """Run the server or a client from its start to its end. `parent` sends the job, and gets all messages.

    The job comes through the pipe. As an argument it would block the parent: it could not start the next process until
    this one has read all the rows of its client.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        job, rows = parent.recv()
        parent.send(_take_part(job, rows, parent))
    except Exception as error:
        known = type(error) if isinstance(error, FrostlineError) else None
        line = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        parent.send(Failed(known, line, traceback.format_exc(), isinstance(error, PeerLost)))


def _take_part(job: Job, rows: ClientRows | None, parent: Connection) -> Finished:
    rank = SERVER if rows is None else 1 + rows.client
    torch.manual_seed(derive_seed(job.seed, "split dropout", rank))
    with MemoryMeter() as memory, quiet_libraries():
        if rows is None:
            upper = UpperPart(job)
            with ExitStack() as connections:
                clients = [Peer(connections.enter_context(closing(wire))) for wire in join_clients(job)]
                trained = run_server(job, upper, clients, lambda loss: parent.send(Round(loss)))
            save_file(trained, job.folder / RESULT_FILE)
            sent = sum((client.sent for client in clients), start=type(clients[0].sent)())
        else:
            lower = LowerPart(job)
            with closing(join_server(job, rows.client)) as wire:
                server = Peer(wire)
                run_client(job, rows, lower, server)
            sent = server.sent
        return Finished(dict(sent), memory.peak_bytes)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
