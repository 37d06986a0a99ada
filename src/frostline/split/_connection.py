"""The connections between the server and its clients: one socket for each client, which both ends have to prove.

The server listens on the loopback address, unless the job names another, and only until all clients have joined. Both
ends prove that they know the secret of the job: each answers a random challenge of the other (HMAC-SHA256). Nothing
that comes from a connection before that is kept, and whatever else connects is closed without a word. What is sent
afterwards is bytes of tensors whose sizes are known: nothing is unpickled. It is not encrypted.
"""

from __future__ import annotations

import hmac
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import torch
from torch import Tensor

from frostline.core.errors import ConfigError
from frostline.core.files import read_text, write_text
from frostline.split._job import Job
from frostline.split._protocol import PeerLost

PORT_FILE = "port"
CHALLENGE = PROOF = 32
PATIENCE = 10.0
"""Seconds that a connection may take to prove itself."""
JOIN_SECONDS = 1800.0
"""How long the processes wait until all have loaded their parts."""


class SocketWire:
    """A wire over a socket. Each message may take `seconds`."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: Tensor) -> None:
        """Send `data`, uint8 [n]."""
        with _lost(self._seconds):
            self._connection.settimeout(self._seconds)
            self._connection.sendall(memoryview(data.numpy()))  # type: ignore[arg-type]

    def receive(self, size: int) -> Tensor:
        """The next `size` bytes, uint8 [size]."""
        data = torch.empty(size, dtype=torch.uint8)
        with _lost(self._seconds):
            _read_into(self._connection, memoryview(data.numpy()), self._seconds)  # type: ignore[arg-type]
        return data

    def close(self) -> None:
        """End the connection. What was sent still arrives."""
        self._connection.close()


def join_clients(job: Job) -> list[SocketWire]:
    """On the server: a wire to each client, in their order, as soon as all have joined.

    Raises `ConfigError` where the address of the job is none of this machine, and `PeerLost` when a client is missing.
    """
    try:
        listener = socket.create_server((job.split.listen, 0), family=_family(job.split.listen), backlog=128)
    except OSError as error:
        raise ConfigError(
            f"listen: {job.split.listen}: {error.strerror}: use an address of this machine, such as 127.0.0.1"
        ) from None
    joined: dict[int, socket.socket] = {}
    found: queue.Queue[tuple[int, socket.socket]] = queue.Queue()
    with listener:
        threading.Thread(target=_accept, args=(listener, job, found), daemon=True).start()
        write_text(job.folder / PORT_FILE, str(listener.getsockname()[1]))
        end = time.monotonic() + JOIN_SECONDS
        while len(joined) < job.split.clients:
            try:
                client, connection = found.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise PeerLost(f"only {len(joined)} of {job.split.clients} clients have joined") from None
            joined.setdefault(client, connection)
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
    return [SocketWire(joined[client], job.split.timeout) for client in range(job.split.clients)]


def join_server(job: Job, client: int) -> SocketWire:
    """On a client, numbered from 0: the wire to the server. Raises `PeerLost` when there is none."""
    place, end = job.folder / PORT_FILE, time.monotonic() + JOIN_SECONDS
    while not place.is_file():
        if time.monotonic() > end:
            raise PeerLost("the server does not listen")
        time.sleep(0.02)
    address = ip_address(job.split.listen)
    host = str(address)
    if address.is_unspecified:  # every address of this machine
        host = "127.0.0.1" if address.version == 4 else "::1"
    with _lost(PATIENCE):
        connection = socket.create_connection((host, int(read_text(place, "port"))), PATIENCE)
        try:
            _introduce(connection, job.secret, client.to_bytes(4, "little"))
        except BaseException:
            connection.close()
            raise
    return SocketWire(connection, job.split.timeout)


def _introduce(connection: socket.socket, secret: bytes, name: bytes) -> None:
    theirs, own = _read(connection, CHALLENGE), secrets.token_bytes(CHALLENGE)
    connection.sendall(name + own + _proof(secret, b"client" + name, theirs, own))
    if not hmac.compare_digest(_read(connection, PROOF), _proof(secret, b"server" + name, theirs, own)):
        raise PeerLost("what listens in the server's place does not know the secret of this training")


def _accept(listener: socket.socket, job: Job, found: queue.Queue[tuple[int, socket.socket]]) -> None:
    while listener.fileno() >= 0:
        try:
            connection, _ = listener.accept()
        except OSError:  # it was closed; or there are too many connections, some of which will end
            time.sleep(0.05)
            continue
        threading.Thread(target=_admit, args=(connection, job, found), daemon=True).start()


def _admit(connection: socket.socket, job: Job, found: queue.Queue[tuple[int, socket.socket]]) -> None:
    """Put a connection that proves itself in `found`, with the number of its client. Close any other."""
    own = secrets.token_bytes(CHALLENGE)
    with suppress(OSError):
        connection.settimeout(PATIENCE)
        connection.sendall(own)
        name, theirs, proof = (_read(connection, size) for size in (4, CHALLENGE, PROOF))
        client = int.from_bytes(name, "little")
        right = hmac.compare_digest(proof, _proof(job.secret, b"client" + name, own, theirs))
        if right and client < job.split.clients:
            connection.sendall(_proof(job.secret, b"server" + name, own, theirs))
            found.put((client, connection))
            return
    connection.close()


def _proof(secret: bytes, role: bytes, servers: bytes, clients: bytes) -> bytes:
    return hmac.digest(secret, role + servers + clients, "sha256")


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _read_into(connection, memoryview(data), PATIENCE)
    return bytes(data)


def _read_into(connection: socket.socket, view: memoryview, seconds: float) -> None:
    end = time.monotonic() + seconds
    while view:
        connection.settimeout(max(0.001, end - time.monotonic()))
        read = connection.recv_into(view)
        if not read:
            raise ConnectionError("the connection was closed")
        view = view[read:]


@contextmanager
def _lost(seconds: float) -> Iterator[None]:
    """Inside this context, an error of a connection becomes a `PeerLost`."""
    try:
        yield
    except TimeoutError:
        raise PeerLost(f"it took longer than {seconds:g} seconds") from None
    except OSError as error:
        raise PeerLost(os.strerror(error.errno) if error.errno else str(error)) from None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
