"""What the processes of a split training are told, as plain data."""

from __future__ import annotations

import math
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
    """How a part steps: the optimizer, its learning rates over the rounds, the norm that gradients are clipped to.

    `rates` is the learning rate and the weight decay of each trained parameter of the model, by name.
    """

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(repr=False)
    rates: Mapping[str, tuple[float, float]] = field(repr=False)
    schedule: str
    warmup: int
    rounds: int
    max_norm: float

    def start(self, parameters: Mapping[str, nn.Parameter]) -> Stepper:
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
        """One step by the gradients that are there, which are gone afterwards."""
        if self._max_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()


@dataclass(frozen=True)
class Job:
    """What every process is told. `folder` holds the base, and the values that the trained tensors begin with.

    `shares` are the numbers of rows that the clients have. `autocast` is a dtype to compute in, or None.
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

    @property
    def rounds(self) -> int:
        return self.stepping.rounds

    def autocasting(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


@dataclass(frozen=True)
class ClientRows:
    """One client's rows, and what makes batches of `batch_size` of them."""

    client: int
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    collate: Any = field(repr=False)
    batch_size: int

    def batches(self, seed: int) -> Iterator[dict[str, Any]]:
        """Batches without end; each pass over the rows has an order of its own, drawn from `seed`."""
        passes = 0
        while True:
            random = torch.Generator().manual_seed(derive_seed(seed, "split batches", self.client, passes))
            order = torch.randperm(len(self.rows), generator=random).tolist()
            for start in range(0, len(order), self.batch_size):
                yield dict(self.collate([self.rows[index] for index in order[start : start + self.batch_size]]))
            passes += 1


def deal(rows: int, clients: int, seed: int) -> list[list[int]]:
    """The indices of `rows` rows, shuffled and dealt to the clients: their shares differ by one row at most.

    Raises `UserError` when there are fewer rows than clients.
    """
    if rows < clients:
        raise ConfigError(f"clients: {rows} training rows are too few for {clients} clients")
    random = torch.Generator().manual_seed(derive_seed(seed, "split rows"))
    order: list[int] = torch.randperm(rows, generator=random).tolist()
    return [order[client::clients] for client in range(clients)]


def rounds_of(shares: Sequence[int], batch_size: int, epochs: float) -> int:
    """Rounds until the client with the most rows has passed over them `epochs` times."""
    return math.ceil(epochs * math.ceil(max(shares) / batch_size))
