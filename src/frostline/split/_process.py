"""One process of a split training: it joins the others, does its part, and tells the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from frostline.checkpoints import quiet_libraries
from frostline.core.errors import FrostlineError, first_line
from frostline.core.seeding import derive_seed
from frostline.engine import MemoryMeter
from frostline.split._client import run_client
from frostline.split._job import ClientRows, Job
from frostline.split._parts import LowerPart, UpperPart
from frostline.split._protocol import GroupWire, Lost, Peer, lost
from frostline.split._server import run_server

RESULT_FILE = "result.safetensors"
RENDEZVOUS_FILE = "rendezvous"
SERVER = 0
TO_MEET = timedelta(minutes=30)
"""How long processes wait for each other to load their parts."""


@dataclass(frozen=True)
class Round:
    """A round is over, with this loss."""

    loss: float


@dataclass(frozen=True)
class Finished:
    """A process has done its part: the bytes that it sent, by kind, and its peak of private memory."""

    sent: dict[str, int]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """A process could not go on. `lost` says that the reason lies with another one."""

    error: type[FrostlineError] | None
    line: str
    trace: str
    lost: bool


Told = Round | Finished | Failed


def run_process(threads: int, parent: Connection) -> None:
    """The server or a client, from its start to its end; `parent` says which, and is told of errors.

    What is to be done comes through the pipe: an argument as long as a client's rows would keep the parent from
    starting the next process until this one reads it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        job, rows = parent.recv()
        parent.send(_take_part(job, rows, parent))
    except Exception as error:
        known = type(error) if isinstance(error, FrostlineError) else None
        line = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        parent.send(Failed(known, line, traceback.format_exc(), isinstance(error, Lost)))


def _take_part(job: Job, rows: ClientRows | None, parent: Connection) -> Finished:
    rank = SERVER if rows is None else 1 + rows.client
    torch.manual_seed(derive_seed(job.seed, "split dropout", rank))
    with MemoryMeter() as memory, quiet_libraries():
        if rows is None:
            upper = UpperPart(job)
            clients = [Peer(GroupWire(1 + client, job.split.timeout)) for client in range(job.split.clients)]
            with _group(job, rank):
                trained = run_server(job, upper, clients, lambda loss: parent.send(Round(loss)))
            save_file(trained, job.folder / RESULT_FILE)
            sent = sum((client.sent for client in clients), start=type(clients[0].sent)())
        else:
            lower, server = LowerPart(job), Peer(GroupWire(SERVER, job.split.timeout))
            with _group(job, rank):
                run_client(job, rows, lower, server)
            sent = server.sent
        return Finished(dict(sent), memory.peak_bytes)


@contextmanager
def _group(job: Job, rank: int) -> Iterator[None]:
    """Inside, this process is one of torch.distributed's group.

    After an error the group is left as it is: to take it down could wait for the others, and keep the error untold.
    """
    size = 1 + job.split.clients
    with lost():
        store = FileStore(str(job.folder / RENDEZVOUS_FILE), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TO_MEET)
    yield
    with lost():
        dist.monitored_barrier(timeout=timedelta(seconds=job.split.timeout))  # no one leaves while another still reads
    dist.destroy_process_group()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
