"""A client: it runs its rows through the lower part, and trains that part by the gradients that the server sends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from frostline.split._job import ClientRows, Job
from frostline.split._parts import LowerPart
from frostline.split._protocol import Kind, Peer


def run_client(job: Job, rows: ClientRows, part: LowerPart, server: Peer) -> None:
    """Train `part` on the client's `rows` until the last round.

    Args:
        job: what all processes do.
        rows: of this client.
        part: the lower part of the model.
        server: the connection to the server.
    """
    stepper = job.stepping.start(part.trained)
    batches = rows.batches(job.seed)
    for step in range(job.rounds):
        _one_round(next(batches), job, part, server)
        stepper.step()
        if job.split.averages_after(step, job.rounds):
            _average(part, server)


def _one_round(batch: Mapping[str, Tensor], job: Job, part: LowerPart, server: Peer) -> None:
    with job.autocasting():
        at_cut = part.forward(batch)
    at_cut.send(server)
    states = at_cut.states
    gradient = server.receive(tuple(states.shape), states.dtype)
    states.backward(gradient.to(states.device))  # type: ignore[no-untyped-call]


def _average(part: LowerPart, server: Peer) -> None:
    """Send the trained matrices to the server and replace them by the average over all clients.

    The state of the optimizer stays.
    """
    parameters = list(part.trained.values())
    own = parameters_to_vector(parameters).detach()
    server.send(Kind.MATRICES_UP, own)
    average = server.receive(tuple(own.shape), own.dtype)
    with torch.no_grad():
        vector_to_parameters(average.to(own.device), parameters)
