"""The server: the batches of all clients pass the upper part as one, which is a step of it; it averages, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from frostline.core.errors import TrainingError
from frostline.split._job import Job
from frostline.split._parts import UpperPart
from frostline.split._protocol import Kind, Peer, Reached


def run_server(job: Job, part: UpperPart, clients: Sequence[Peer], tell: Callable[[float], None]) -> dict[str, Tensor]:
    """Train `part` to the last round and give what trained in both parts, by name, on the CPU.

    `tell` is called with the loss of every round. Raises `TrainingError` when the loss is not a number.
    """
    stepper = job.stepping.start(part.trained)
    lower = part.lower
    for step in range(job.rounds):
        tell(_one_round(step, job, part, clients))
        stepper.step()
        if job.split.averages_after(step, job.rounds):
            lower = _average(lower, job.shares, clients)
    both = {**lower, **{name: parameter.detach() for name, parameter in part.trained.items()}}
    return {name: tensor.cpu().contiguous() for name, tensor in both.items()}


def _one_round(step: int, job: Job, part: UpperPart, clients: Sequence[Peer]) -> float:
    reached = [Reached.receive(client) for client in clients]
    for batch in reached:
        batch.states.requires_grad_()
    with job.autocasting():
        loss = part.loss(reached)
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss is {loss.item()} at step {step + 1}: lower the learning rate or look at the data"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for client, batch in zip(clients, reached, strict=True):
        assert batch.states.grad is not None
        client.send(Kind.GRADIENTS, batch.states.grad)
    return loss.item()


def _average(lower: dict[str, Tensor], shares: Sequence[int], clients: Sequence[Peer]) -> dict[str, Tensor]:
    """The clients' matrices averaged, each weighted by its number of rows, which they are given back."""
    flat = parameters_to_vector(lower.values())
    average = torch.zeros(flat.shape, dtype=torch.float64)
    for client, rows in zip(clients, shares, strict=True):
        average += client.receive(tuple(flat.shape), flat.dtype).double() * (rows / sum(shares))
    result = average.to(flat.dtype)
    for client in clients:
        client.send(Kind.MATRICES_DOWN, result)
    sizes = [tensor.numel() for tensor in lower.values()]
    pieces = torch.split(result, sizes)
    return {name: piece.reshape(old.shape) for (name, old), piece in zip(lower.items(), pieces, strict=True)}
