"""What the processes of a split training have to do, as plain data."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from frostline.bottom import Cut
from frostline.core.errors import ConfigError
from frostline.core.seeding import derive_seed
from frostline.plan import Plan, Split


@dataclass(frozen=True)
class Stepping:
    """How the parameters of a part are stepped.

    Attributes:
        optimizer: its class.
        options: of the optimizer.
        rates: name of each trained parameter of the model -> learning rate and weight decay.
        schedule: name of the learning-rate schedule.
        warmup: its warmup steps.
        rounds: of the whole training.
        max_norm: to which gradients are clipped; 0 for no clipping.
    """

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(repr=False)
    rates: Mapping[str, tuple[float, float]] = field(repr=False)
    schedule: str
    warmup: int
    rounds: int
    max_norm: float

    def start(self, parameters: Mapping[str, nn.Parameter]) -> Stepper:
        """The optimizer and schedule of one part with these parameters."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            groups.setdefault(self.rates[name], []).append(parameter)
        optimizer = self.optimizer(
            [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()],
            **self.options,
        )
        return Stepper(list(parameters.values()), optimizer, self)


class Stepper:
    """Steps the parameters of one part."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, stepping: Stepping) -> None:
        self._parameters, self._optimizer, self._max_norm = parameters, optimizer, stepping.max_norm
        self._schedule = get_scheduler(
            stepping.schedule, optimizer, num_warmup_steps=stepping.warmup, num_training_steps=stepping.rounds
        )

    def step(self) -> None:
        """Make one step with the current gradients, then drop them."""
        if self._max_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()


@dataclass(frozen=True)
class Job:
    """What every process has to know.

    Attributes:
        folder: holds the base, and the initial values of the trained tensors.
        model_class: name of the transformers class.
        config: of the model.
        dtype: of the base.
        plan: what trains.
        seed: of the training.
        split: the settings of split training.
        cut: where the model is cut.
        stepping: how parameters are stepped.
        shares: number of rows of each client.
        device: on which every process computes.
        autocast: dtype of autocast; None without autocast.
        secret: which all processes of this training know, and nobody else. It is never written to a file.
    """

    folder: Path
    model_class: str
    config: Any = field(repr=False)
    dtype: str
    plan: Plan = field(repr=False)
    seed: int
    split: Split
    cut: Cut = field(repr=False)
    stepping: Stepping = field(repr=False)
    shares: tuple[int, ...]
    device: torch.device
    autocast: torch.dtype | None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def rounds(self) -> int:
        return self.stepping.rounds

    def autocasting(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


@dataclass(frozen=True)
class ClientRows:
    """The rows of one client (numbered from 0), and how they become batches of `batch_size` rows."""

    client: int
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    collate: Any = field(repr=False)
    batch_size: int

    def batches(self, seed: int) -> Iterator[dict[str, Any]]:
        """Endless batches. Each pass over the rows has its own order, drawn from `seed`."""
        passes = 0
        while True:
            random = torch.Generator().manual_seed(derive_seed(seed, "split batches", self.client, passes))
            order = torch.randperm(len(self.rows), generator=random).tolist()
            for start in range(0, len(order), self.batch_size):
                yield dict(self.collate([self.rows[index] for index in order[start : start + self.batch_size]]))
            passes += 1


def share_rows(rows: int, clients: int, seed: int) -> list[list[int]]:
    """Shuffle the indices of `rows` rows and distribute them over the clients, as evenly as possible.

    Args:
        rows: how many there are.
        clients: how many there are.
        seed: of the order.

    Raises `ConfigError` when there are fewer rows than clients.
    """
    if rows < clients:
        raise ConfigError(f"clients: {rows} training rows are too few for {clients} clients: use at most {rows}")
    random = torch.Generator().manual_seed(derive_seed(seed, "split rows"))
    order: list[int] = torch.randperm(rows, generator=random).tolist()
    return [order[client::clients] for client in range(clients)]


def rounds_of(shares: Sequence[int], batch_size: int, epochs: float) -> int:
    """The number of rounds in which the client with the most rows makes `epochs` passes over them.

    Args:
        shares: number of rows of each client.
        batch_size: rows of a client's batch.
        epochs: passes over the rows.
    """
    return math.ceil(epochs * math.ceil(max(shares) / batch_size))
