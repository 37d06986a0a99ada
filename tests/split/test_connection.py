"""The connections of a split training: where they listen, and who is let in."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from test_split import rows_of, trainer_of

from architectures import tiny
from frostline.core.errors import ConfigError
from frostline.plan import Split
from frostline.split import SplitTrainer
from frostline.split import _connection as connection
from frostline.split._connection import PORT_FILE, SocketWire, join_clients, join_server
from frostline.split._job import Job
from frostline.split._protocol import PeerLost


def trainer(folder: Path, **split: object) -> SplitTrainer:
    return trainer_of(folder, tiny("llama"), Split(cut=1, clients=2, **split), rows_of(8))  # type: ignore[arg-type]


def job_in(folder: Path, **split: object) -> Job:
    return trainer(folder, **split)._work(folder)[0]


def listening() -> set[str]:
    found = psutil.Process().net_connections("tcp")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


def port(job: Job) -> int:
    while not (job.folder / PORT_FILE).is_file():
        time.sleep(0.01)
    return int((job.folder / PORT_FILE).read_text())


def knock(job: Job, number: int) -> socket.socket:
    """A stranger: it says nothing, something else, too much, or leaves at once."""
    stranger = socket.create_connection(("127.0.0.1", port(job)))
    said = (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(68), os.urandom(200_000), (0).to_bytes(4, "little") + bytes(64))
    with suppress(ConnectionError):
        stranger.sendall(said[number % len(said)])
    if number % 7 == 0:
        stranger.close()
    return stranger


def test_strangers_are_not_let_in_and_end_nothing(tmp_path: Path) -> None:
    before, job = listening(), job_in(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        server = pool.submit(join_clients, job)
        strangers = [knock(job, number) for number in range(80)]
        assert listening() - before <= {"127.0.0.1"}
        with pytest.raises(PeerLost, match=r"closed|reset"):
            join_server(replace(job, secret=bytes(32)), 0)
        with pytest.raises(PeerLost, match=r"closed|reset"):
            join_server(job, 2)  # there are two
        clients = [join_server(job, number) for number in range(2)]
        wires = server.result(timeout=240)
    for wire, client in zip(wires, clients, strict=True):
        data = torch.randint(256, (3_000_000,), dtype=torch.uint8)
        sending = threading.Thread(target=wire.send, args=(data,))
        sending.start()
        assert torch.equal(client.receive(len(data)), data)
        sending.join()
        client.send(data[:0])
        assert client.receive(0).shape == (0,)
    assert listening() == before, "nothing listens while training"
    for each in (*strangers, *wires, *clients):
        each.close()


def test_a_server_that_does_not_know_the_secret_gets_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as false:
        (tmp_path / PORT_FILE).write_text(str(false.getsockname()[1]))
        client = pool.submit(join_server, job, 0)
        accepted, _ = false.accept()
        with accepted:
            accepted.sendall(bytes(32))
            heard = b""
            while len(heard) < 68:
                heard += accepted.recv(68)
            assert job.secret not in heard
            accepted.sendall(heard[-32:])  # its own proof sent back is none
            with pytest.raises(PeerLost, match="does not know the secret"):
                client.result(timeout=240)


def test_a_message_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = SocketWire(socket.create_connection(listener.getsockname()), 0.2)
        there, _ = listener.accept()
        with pytest.raises(PeerLost, match=r"^it took longer than 0\.2 seconds$"):
            here.receive(1)
        there.close()
        with pytest.raises(PeerLost, match="closed"):
            here.receive(1)
        here.close()
    monkeypatch.setattr(connection, "JOIN_SECONDS", 0.1)
    job = job_in(tmp_path)
    with pytest.raises(PeerLost, match="the server does not listen"):
        join_server(job, 0)
    with pytest.raises(PeerLost, match="only 0 of 2 clients have joined"):
        join_clients(job)


def test_where_it_listens_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^listen: 'localhost' is no IP address: use for example 127.0.0.1$"):
        Split(cut=1, listen="localhost")
    with pytest.raises(ConfigError, match=r"^listen: 192\.0\.2\.1: .*: use an address of this machine"):
        join_clients(job_in(tmp_path, listen="192.0.2.1"))


@pytest.mark.parametrize("listen", ["0.0.0.0", "127.0.0.1"])
def test_it_trains_where_it_listens(tmp_path: Path, listen: str) -> None:
    split = trainer(tmp_path, listen=listen)
    assert split.train().global_step == 6
