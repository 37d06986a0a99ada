"""How a training is split over a server and clients, as pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """How a training is split.

    Attributes:
        cut: how many blocks, with the embeddings, are the clients' part; the rest is the server's.
        clients: how many clients there are, each with its own share of the rows.
        average_every: rounds between two averages of the clients' matrices.
        timeout: seconds that one process waits for a message of another.
    """

    cut: int
    clients: int = 3
    average_every: int = 100
    timeout: float = 600.0

    def averages_after(self, step: int, rounds: int) -> bool:
        """Whether the clients' matrices are averaged after round `step` (counted from 0): every so often, and last."""
        return (step + 1) % self.average_every == 0 or step + 1 == rounds
