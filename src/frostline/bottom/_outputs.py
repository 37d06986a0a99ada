"""What a model gives in a call, as far as it is more than padding: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor


def watch_padding(output: Any, real: Tensor, found: Callable[[], None]) -> None:
    """Call `found` in the backward pass where the loss reads outputs at padding.

    What is computed at padding depends on the rows of a batch. A loss that reads it has a gradient there.

    Args:
        output: of the model.
        real: which positions are tokens of a row, [B, T].
        found: is called, perhaps more than once.
    """
    if bool(real.all()):
        return
    padding = ~real

    def look(gradient: Tensor) -> None:
        if bool(gradient[padding.to(gradient.device)].any()):
            found()

    for value in tensors_in(output):
        if value.requires_grad and value.shape[:2] == padding.shape:
            cast(Any, value).register_hook(look)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in the output of a model, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)


def summed(output: Any, real: Tensor | None) -> Tensor:
    """One number that depends on all outputs of a call but those at padding, each with a weight of its own."""
    total = torch.zeros(())
    for value in tensors_in(output):
        found = value.float()
        if real is not None and found.dim() >= 2 and found.shape[0] == real.shape[0]:
            length = found.shape[1]
            if real.shape[1] - 1 <= length <= real.shape[1]:  # log-probabilities have one position fewer
                found = found[real[:, real.shape[1] - length :].to(found.device)]
        generator = torch.Generator().manual_seed(found.numel())
        weights = torch.randn(found.shape, generator=generator).to(found.device)
        total = total.to(found.device) + (found * weights).sum() / max(1, found.numel()) ** 0.5
    return total
