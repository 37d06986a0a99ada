"""How training is divided between a server and clients (SplitLoRA), as pure data."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from frostline.core.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """How training is divided between a server and clients.

    Attributes:
        cut: how many blocks the clients hold, with the embeddings. The server holds the rest.
        clients: how many clients there are, each with its own share of the rows.
        average_every: rounds between two averages of the clients' matrices.
        timeout: how many seconds a process waits for a message from another.
        listen: the address of this machine on which the server listens for its clients.
    """

    cut: int
    clients: int = 3
    average_every: int = 100
    timeout: float = 600.0
    listen: str = "127.0.0.1"

    def __post_init__(self) -> None:
        try:
            ip_address(self.listen)
        except ValueError:
            raise ConfigError(f"listen: {self.listen!r} is no IP address: use for example 127.0.0.1") from None

    def averages_after(self, step: int, rounds: int) -> bool:
        """Whether the clients' matrices are averaged after round `step`, from 0. After the last one they always are."""
        return (step + 1) % self.average_every == 0 or step + 1 == rounds
