"""The gradient of the loss on a sample, with respect to the blocks' tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy
from frostline.core.errors import DataError
from frostline.core.labels import IGNORED


def loss_gradients(model: Any, anatomy: Anatomy, batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Name -> float32 gradient of the mean loss over the labels of all `batches`, for each tensor of the blocks.

    Tensors that get no gradient (an expert that no token reached) are left out. The model has to be in eval mode. Its
    own gradients and `requires_grad` flags are put back. Raises `DataError` for a gradient that is not finite.
    """
    names = {tensor.name for block in anatomy.blocks for tensor in block.tensors}
    found: dict[str, Tensor] = {}
    total = 0
    with _only_these_learn(model, names) as parameters, torch.enable_grad():
        for batch in batches:
            count = _labels(batch["labels"], shifted=anatomy.shifts_labels)
            if not count:
                continue
            total += count
            (model(**batch).loss.float() * count).backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    gradient = parameter.grad.float()
                    found[name] = found[name].add_(gradient) if name in found else gradient
                    parameter.grad = None
    for name, gradient in found.items():
        if not gradient.isfinite().all():
            raise DataError(
                f"{name}: its gradient on the sample is not finite: use another dtype (float32), or other rows"
            )
    return {name: gradient / total for name, gradient in found.items()}


def row_gradients(model: Any, anatomy: Anatomy, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
    """What `loss_gradients` gives for each row alone, from batches of one row each. Rows without a label have none."""
    for row in rows:
        if gradients := loss_gradients(model, anatomy, [row]):
            yield gradients


def _labels(labels: Tensor, *, shifted: bool) -> int:
    """How many labels the model's mean loss is over; how many rows, where each has one or a number for each class."""
    if labels.dim() == 1 or labels.is_floating_point():
        return len(labels)
    return int(((labels[:, 1:] if shifted else labels) != IGNORED).sum())


@contextmanager
def _only_these_learn(model: nn.Module, names: set[str]) -> Iterator[dict[str, nn.Parameter]]:
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    learning = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None
        if name in names:
            learning[name] = parameter
    try:
        yield learning
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
