"""The server: it trains the upper part on the batches of all clients as one batch, and averages the lower parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from frostline.core.errors import TrainingError
from frostline.split._job import Job
from frostline.split._parts import UpperPart
from frostline.split._protocol import BatchAtCut, Kind, Peer


def run_server(
    job: Job, part: UpperPart, clients: Sequence[Peer], report: Callable[[float], None]
) -> dict[str, Tensor]:
    """Train `part` until the last round, and give the trained tensors of both parts by name, on the CPU.

    Args:
        job: what all processes do.
        part: the upper part of the model.
        clients: the connections to the clients, in order.
        report: called with the loss of every round.

    Raises `TrainingError` when the loss is not a number.
    """
    stepper = job.stepping.start(part.trained)
    lower = part.lower
    for step in range(job.rounds):
        report(_one_round(step, job, part, clients))
        stepper.step()
        if job.split.averages_after(step, job.rounds):
            lower = _average(lower, job.shares, clients)
    both = {**lower, **{name: parameter.detach() for name, parameter in part.trained.items()}}
    return {name: tensor.cpu().contiguous() for name, tensor in both.items()}


def _one_round(step: int, job: Job, part: UpperPart, clients: Sequence[Peer]) -> float:
    batches = [BatchAtCut.receive(client) for client in clients]
    for batch in batches:
        batch.states.requires_grad_()
    with job.autocasting():
        loss = part.loss(batches)
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss is {loss.item()} at step {step + 1}: use a lower learning_rate or check the data"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for client, batch in zip(clients, batches, strict=True):
        assert batch.states.grad is not None
        client.send(Kind.GRADIENTS, batch.states.grad)
    return loss.item()


def _average(lower: dict[str, Tensor], shares: Sequence[int], clients: Sequence[Peer]) -> dict[str, Tensor]:
    """Average the clients' matrices, weighted by their numbers of rows, and send the average to all of them."""
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
