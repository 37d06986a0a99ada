"""Check that two computations of a batch are the same training step. Every shortcut uses this one check.

A shortcut (stored states, loss positions, packed rows) is used only where its loss, and its gradient of every trained
parameter, equal those of the plain computation. The tolerance depends on how the two computations differ.

    loss          |other - own| <= loss * max(1, |own|)
    gradient      ||other - own|| <= gradient * max(||own||, floor * largest ||own|| of any parameter)

The floor is for gradients that are zero except for rounding errors (the bias of the keys): they are compared with the
largest gradient, because their own size means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.core.errors import first_line
from frostline.hooks._sharded import any_sharded, whole
from frostline.hooks._undisturbed import undisturbed

Loss = Callable[[], Tensor]
"""Computes the loss of one batch, ready for a backward pass."""


@dataclass(frozen=True)
class Tolerance:
    """How far two computations may differ, in the terms of this module's formulas.

    Attributes:
        loss: relative difference of the losses.
        gradient: relative difference of the gradients.
        floor: share of the largest gradient below which a gradient is compared with this share.
        reason: where the difference comes from.
    """

    loss: float
    gradient: float
    floor: float
    reason: str


SAME_NUMBERS = Tolerance(1e-5, 1e-4, 1e-2, "float32: the same products, summed in another order")
OTHER_BATCH = Tolerance(
    1e-4, 1e-3, 1e-2, "float32: the frozen bottom computed in a batch of another shape, and all that follows from it"
)
FEWER_BITS = Tolerance(2e-2, 5e-2, 1e-1, "every product is rounded to 8 bits of fraction")
STORED_IN_FEWER_BITS = Tolerance(
    2e-2, 1e-1, 1e-1, "the states and every product after them are rounded to 8 bits of fraction"
)


def computes_in_fewer_bits(model: nn.Module, device: torch.device) -> bool:
    """Whether `model` computes in fewer bits than float32, by its dtypes or by autocast, at the moment of this call."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return torch.is_autocast_enabled(device.type) or any(torch.finfo(dtype).bits < 32 for dtype in dtypes)


@dataclass(frozen=True)
class Step:
    """What one computation of a batch gave: its loss, and the gradients of the trained parameters in their order."""

    loss: float
    gradients: list[Tensor | None]


def compute_step(model: nn.Module, compute: Loss, *, training: bool = False) -> Step:
    """Compute a loss and its gradients, and leave the model as it was.

    Args:
        model: the gradients of its trained parameters are computed.
        compute: the loss.
        training: as for `compare_training`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with undisturbed(model, training=training):
        loss = compute()
        gradients = _gradients(loss, trained) if trained and loss.requires_grad else [None] * len(trained)
        found = [None if gradient is None else gradient.detach().float() for gradient in gradients]
        return Step(float(loss.detach()), found)


def _gradients(loss: Tensor, trained: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    if not any_sharded(trained):
        return torch.autograd.grad(loss, trained, allow_unused=True)
    # The graph holds what was gathered from all processes; the parts get their gradients from a backward pass alone.
    before = [parameter.grad for parameter in trained]
    try:
        for parameter in trained:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return [None if parameter.grad is None else whole(parameter.grad) for parameter in trained]
    finally:
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient


def compare_training(
    model: nn.Module, own: Loss | Step, other: Loss, tolerance: Tolerance, *, training: bool = False
) -> str | None:
    """Say in one line how two computations of a batch differ in loss or gradients; None when they agree.

    Weights, their gradients, buffers, random generators and training flags are left as they were. Both computations
    start from the same state of every random generator. If the second one fails, that counts as a difference.

    Args:
        model: the gradients of its trained parameters are compared.
        own: the plain computation, or what it gave.
        other: the computation that may replace it.
        tolerance: how far the two may differ.
        training: run the model in train mode (frozen parts stay in eval mode); otherwise all of it in eval mode.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = own if isinstance(own, Step) else compute_step(model, own, training=training)
    try:
        replacing = compute_step(model, other, training=training)
    except Exception as error:
        return f"it fails ({first_line(error)})"
    loss, other_loss, gradients = plain.loss, replacing.loss, plain.gradients
    if not abs(other_loss - loss) <= tolerance.loss * max(1.0, abs(loss)):
        return f"its loss is {other_loss:.6g}, not {loss:.6g}"
    largest = max((float(gradient.norm()) for gradient in gradients if gradient is not None), default=0.0)
    for name, mine, its in zip(trained, gradients, replacing.gradients, strict=True):
        if mine is None and its is None:
            continue
        given = mine if mine is not None else its
        assert given is not None
        mine, its = (torch.zeros_like(given) if one is None else one for one in (mine, its))
        scale = max(float(mine.norm()), tolerance.floor * largest)
        away = float((its - mine).norm())
        if not away <= tolerance.gradient * scale:
            return f"its gradient of {name} " + (f"differs by {away / scale:.1%}" if scale else "is not zero")
    return None
