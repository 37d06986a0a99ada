"""Whether two computations of a batch are the same training step: one proof for every shortcut.

A shortcut (stored states, loss positions, packed rows) is used only where its loss, and its gradient of every trained
parameter, are those of the plain computation. How far they may be apart follows from what differs between the two.

    loss          |other - own| <= loss * max(1, |own|)
    gradient      ||other - own|| <= gradient * max(||own||, floor * largest ||own|| of any parameter)

The floor: a gradient that is zero but for rounding (a key's bias) is compared with the largest one, not with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.core.errors import first_line
from frostline.hooks._undisturbed import undisturbed

Loss = Callable[[], Tensor]
"""Computes the loss of one batch, with its graph."""


@dataclass(frozen=True)
class Tolerance:
    """How far the two may be apart, in shares as the module says, and why so far."""

    loss: float
    gradient: float
    floor: float
    reason: str


SAME_NUMBERS = Tolerance(1e-5, 1e-4, 1e-2, "float32: the same products in another order of sums")
OTHER_BATCH = Tolerance(1e-4, 1e-3, 1e-2, "float32: the bottom's products in a batch of another shape, then the top's")
FEWER_BITS = Tolerance(2e-2, 5e-2, 1e-1, "rounded to 8 bits of fraction at every product")
STORED_IN_FEWER_BITS = Tolerance(2e-2, 1e-1, 1e-1, "states rounded to 8 bits of fraction, and every product after them")


def rounds(model: nn.Module, device: torch.device) -> bool:
    """Whether something in `model` computes in fewer bits than float32, here and now."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return torch.is_autocast_enabled(device.type) or any(torch.finfo(dtype).bits < 32 for dtype in dtypes)


def compare_training(
    model: nn.Module, own: Loss, other: Loss, tolerance: Tolerance, *, training: bool = False
) -> str | None:
    """What differs between two computations of one batch's loss and gradients, in a line; None when nothing does.

    Weights, their gradients, buffers, generators and modes are left as they were. Both computations begin at the same
    place of every generator. An error of the second one is a difference.

    Args:
        model: its parameters that require gradients are compared.
        own: the plain computation.
        other: the one that is to replace it.
        tolerance: how far they may be apart.
        training: whether the model is in train mode, frozen parts as the plan has them; else in eval mode.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss, gradients = _step(model, own, list(trained.values()), training)
    try:
        other_loss, other_gradients = _step(model, other, list(trained.values()), training)
    except Exception as error:
        return f"it fails ({first_line(error)})"
    if not abs(other_loss - loss) <= tolerance.loss * max(1.0, abs(loss)):
        return f"its loss is {other_loss:.6g}, not {loss:.6g}"
    largest = max((float(gradient.norm()) for gradient in gradients if gradient is not None), default=0.0)
    for name, mine, its in zip(trained, gradients, other_gradients, strict=True):
        if mine is None and its is None:
            continue
        given = mine if mine is not None else its
        assert given is not None
        mine, its = (torch.zeros_like(given) if one is None else one for one in (mine, its))
        scale = max(float(mine.norm()), tolerance.floor * largest)
        away = float((its - mine).norm())
        if not away <= tolerance.gradient * scale:
            return f"its gradient of {name} is {away / scale:.1%} off" if scale else f"it has a gradient of {name}"
    return None


def _step(
    model: nn.Module, compute: Loss, trained: list[nn.Parameter], training: bool
) -> tuple[float, list[Tensor | None]]:
    with undisturbed(model, training=training):
        loss = compute()
        gradients = (
            torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else [None] * len(trained)
        )
        return float(loss.detach()), [None if found is None else found.detach().float() for found in gradients]
