"""Whether two ways of computing a batch give the same loss and the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.core.errors import first_line
from frostline.hooks import undisturbed

# Relative to the loss, to a gradient's norm, and (the norm below which a gradient is noise) to the largest one.
_EXACT = (1e-5, 1e-4, 1e-2)
_ROUNDED = (2e-2, 5e-2, 1e-1)


def disagreement(model: nn.Module, batch: Mapping[str, Any], economical: Callable[[bool], None]) -> str | None:
    """Why the model differs from itself when `economical` is switched on, in a line; None when it does not.

    Compared at dropout 0: the loss, and the gradient of every trained parameter. In float32 within 1e-5 of the
    loss and 1e-4 of a gradient's norm; where something computes in fewer bits within what rounding makes.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with undisturbed(model):
        economical(False)
        loss, gradients = _loss_and_gradients(model, batch, list(trained.values()))
        economical(True)
        try:
            other_loss, other_gradients = _loss_and_gradients(model, batch, list(trained.values()))
        except Exception as error:
            return f"it fails on part of the positions ({first_line(error)})"
    of_loss, of_gradient, floor = _ROUNDED if _rounds(model, loss) else _EXACT
    if abs(other_loss - loss) > of_loss * abs(loss):
        return f"its loss on part of the positions is {other_loss:.6g}, not {loss:.6g}"
    largest = max((gradient.norm() for gradient in gradients if gradient is not None), default=loss)
    for name, gradient, other in zip(trained, gradients, other_gradients, strict=True):
        if gradient is None and other is None:
            continue
        if gradient is None or other is None:
            return f"the gradient of {name} is {'missing' if other is None else 'there'} on part of the positions alone"
        away = (other - gradient).norm() / torch.maximum(gradient.norm(), floor * largest)
        if away > of_gradient:
            return f"the gradient of {name} on part of the positions is {away:.1%} off"
    return None


def _loss_and_gradients(
    model: nn.Module, batch: Mapping[str, Any], trained: list[nn.Parameter]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    loss = model(**batch).loss
    return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)


def _rounds(model: nn.Module, loss: Tensor) -> bool:
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return torch.is_autocast_enabled(loss.device.type) or any(torch.finfo(dtype).bits < 32 for dtype in dtypes)
