"""What a model gives in a call, as far as it is more than padding.

B rows, T tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

RealOf = Callable[[str], Tensor | None]
"""Name of an output -> which of its positions are no padding, [B, T]; None where that is not known."""


class PaddingWatch:
    """Sees in the backward pass whether a loss reads outputs at padding.

    What is computed at padding depends on the rows of a batch. A loss that reads it has a gradient there.

    Attributes:
        read: that it does, in one line; None as long as it was not seen.
        unread: whether a backward pass has shown that it does not.
    """

    def __init__(self) -> None:
        self.read: str | None = None
        self.unread = False

    def watch(self, output: Any, real_of: RealOf, whole: bool) -> None:
        """Look at the outputs of a call when their gradients come.

        Args:
            output: of the model.
            real_of: where padding is.
            whole: whether the bottom ran in this call.
        """
        watched = False
        for name, value in tensors_in(output):
            real = real_of(name)
            if real is not None and value.requires_grad and value.shape[:2] == real.shape:
                watched = True
                cast(Any, value).register_hook(partial(self._see, ~real))
        if not watched and whole:
            self.unread = True  # no output has padding

    def _see(self, padding: Tensor, gradient: Tensor) -> None:
        if bool(gradient[padding.to(gradient.device)].any()):
            self.read = "off: the loss reads outputs at padding, which depend on the rows of the batch"
        self.unread = self.read is None


def summed(output: Any, real_of: RealOf) -> Tensor:
    """One number that depends on all outputs of a call but those at padding, each with a weight of its own."""
    total = torch.zeros(())
    for name, value in tensors_in(output):
        found, real = value.float(), real_of(name)
        if real is not None and found.dim() >= 2 and found.shape[0] == real.shape[0]:
            length = found.shape[1]
            if real.shape[1] - 1 <= length <= real.shape[1]:  # log-probabilities have one position fewer
                found = found[real[:, real.shape[1] - length :].to(found.device)]
        generator = torch.Generator().manual_seed(found.numel())
        weights = torch.randn(found.shape, generator=generator).to(found.device)
        total = total.to(found.device) + (found * weights).sum() / max(1, found.numel()) ** 0.5
    return total


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in the output of a model, in order, each with the name that it has there."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_in(inner, name or str(key))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner, name)
