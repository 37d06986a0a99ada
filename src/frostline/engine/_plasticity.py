"""Plasticity: how far the outputs of a block have moved from those of a reference (Egeria; methods.md 10).

B rows, T tokens, d hidden width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize
from transformers import Cache

from frostline.hooks import hidden_of, stoppable, undisturbed

_LARGEST = 127
_SCALE, _READINGS = "|scale", "|readings"


class Reference:
    """The trained tensors of a block at one moment: matrices in 8 bits, each row with its own scale.

    Everything below the lowest trained block is frozen, so the rest of the reference is the model itself.

    Attributes:
        tensors: all that it consists of, by name, to be saved.

    Args:
        trained: the tensors, by their names in the block.
        every: after so many readings it is made anew.
    """

    def __init__(self, trained: Mapping[str, Tensor], every: int) -> None:
        self._trained, self._every = trained, every
        self.tensors: dict[str, Tensor] = {_READINGS: torch.zeros(1, dtype=torch.int64)}
        for name, tensor in trained.items():
            if tensor.dim() < 2:
                self.tensors[name] = torch.empty_like(tensor)
            else:
                self.tensors[name] = torch.empty_like(tensor, dtype=torch.int8)
                self.tensors[name + _SCALE] = tensor.new_empty(len(tensor), *[1] * (tensor.dim() - 1))
        self._make()

    def read(self, model: nn.Module, block: nn.Module, run: Callable[[], Any], mask: Tensor | None) -> float:
        """The plasticity of the block.

        Args:
            model: what trains. It is in eval mode meanwhile, and left as it was.
            block: a part of it, the one that the tensors are of.
            run: makes a pass of the model. The pass ends after the block.
            mask: [B, T], 0 for padding.
        """
        values = {name: self._value(name) for name in self._trained}
        found = plasticity(model, block, values, run, mask)
        self.tensors[_READINGS] += 1
        if int(self.tensors[_READINGS]) % self._every == 0:
            self._make()
        return found

    def _make(self) -> None:
        for name, tensor in self._trained.items():
            own = tensor.detach()
            if own.dim() >= 2:
                scale = self.tensors[name + _SCALE]
                scale.copy_(own.abs().amax(dim=tuple(range(1, own.dim())), keepdim=True) / _LARGEST)
                own = (own / scale.where(scale > 0, 1.0)).round()
            self.tensors[name].copy_(own)

    def _value(self, name: str) -> Tensor:
        scale = self.tensors.get(name + _SCALE)
        return self.tensors[name] if scale is None else self.tensors[name] * scale


def plasticity(
    model: nn.Module, block: nn.Module, reference: Mapping[str, Tensor], run: Callable[[], Any], mask: Tensor | None
) -> float:
    """How far the outputs of a block differ from those that it has with other values of its tensors.

    Args:
        model: in which the block is. It is in eval mode meanwhile, and left as it was.
        block: one of its modules.
        reference: other values of some of the block's tensors, by name.
        run: makes a pass of the model. The pass ends after the block.
        mask: [B, T], 0 for padding.
    """

    def compare(own: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        handle.remove()  # the reference is a call of the same module
        given = [_without_cache(value) for value in args]
        named = {name: _without_cache(value) for name, value in kwargs.items()}
        other = functional_call(own, dict(reference), tuple(given), named)
        stop(similarity_loss(hidden_of(output), hidden_of(other), mask))

    with undisturbed(model), stoppable() as stop, torch.no_grad():
        handle = block.register_forward_hook(compare, with_kwargs=True)
        try:
            run()
        finally:
            handle.remove()
    return float(stop.value)


def _without_cache(value: Any) -> Any:
    return None if isinstance(value, Cache) else value  # it holds keys of the first call


def similarity_loss(own: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """The similarity-preserving loss of two activations (Tung and Mori 2019): do they hold the same rows for similar?

    With A [B, T d], G = A A^T, each row divided by its norm: the mean square of the differences between two G. A batch
    of one row has no other to be similar to: its tokens are compared then, with A [T, d].

    Args:
        own: [B, T, d].
        other: [B, T, d].
        mask: [B, T], 0 for padding.
    """
    return (_similarities(own, mask) - _similarities(other, mask)).square().mean()


def _similarities(hidden: Tensor, mask: Tensor | None) -> Tensor:
    hidden = hidden.float()
    if mask is not None and mask.shape == hidden.shape[:2]:
        hidden = hidden * mask.to(hidden).unsqueeze(-1)
    rows = hidden.flatten(1) if len(hidden) > 1 else hidden[0]
    return normalize(rows @ rows.T, dim=1)
