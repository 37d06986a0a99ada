"""How much a few training steps change each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from frostline.anatomy import Anatomy
from frostline.signals._weights import weight_change


@dataclass(frozen=True)
class WarmUp:
    """A few steps of AdamW at a constant rate.

    Attributes:
        steps: how many steps.
        learning_rate: their learning rate.
        batch: how many rows of the sample each step has, in order.
    """

    steps: int = 5
    learning_rate: float = 5e-5
    batch: int = 32


FIVE_STEPS = WarmUp()


def warm_up_change(
    model: Any,
    anatomy: Anatomy,
    rows: Sequence[Any],
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    warm_up: WarmUp,
) -> tuple[float, ...]:
    """The weight change of every block after `warm_up` (methods.md 1: ADT).

    Everything but the embeddings (and a head tied to them) trains, in float32 and without dropout. Then weights and
    flags are put back. Until then, a copy of the weights is in memory.

    Args:
        model: the model, in eval mode.
        anatomy: of the model.
        rows: the encoded sample.
        collate: makes a batch of rows.
        warm_up: the training steps.
    """
    embeddings = {tensor.name for tensor in anatomy.embeddings}
    batches = [rows[start : start + warm_up.batch] for start in range(0, len(rows), warm_up.batch)]
    with _put_back(model), torch.enable_grad():
        model.float()
        learning = {}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in embeddings)
            if parameter.requires_grad:
                learning[name] = parameter
        before = {name: parameter.detach().clone() for name, parameter in learning.items()}
        optimizer = torch.optim.AdamW(learning.values(), lr=warm_up.learning_rate, weight_decay=0.0)
        for batch in islice(cycle(batches), warm_up.steps):
            model(**collate(batch)).loss.backward()
            nn.utils.clip_grad_norm_(learning.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            return weight_change(before, learning, anatomy)


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    held = [(tensor, tensor.data, tensor.requires_grad, tensor.grad) for tensor in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for tensor, data, _, _ in held:
        tensor.data, tensor.grad = data.clone(), None
    try:
        yield
    finally:
        for tensor, data, required, gradient in held:
            tensor.grad = None
            tensor.data = data
            tensor.requires_grad_(required)
            tensor.grad = gradient
        for module, own in buffers:
            module._buffers.update(own)
