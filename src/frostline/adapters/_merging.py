"""Add updates to a module's weight, and take them out again. Quantized weights go through PEFT's own backends.

The sum is computed in float32 and rounded once, to the weight's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn


@dataclass(frozen=True)
class Unmerged:
    """What a quantized module was before a merge, kept to put it back: dequantized values would not give it again."""

    module: nn.Module
    weight: Any
    state: Any

    @classmethod
    def of(cls, module: nn.Module) -> Unmerged:
        return cls(module, getattr(module, "weight", None), copy.copy(getattr(module, "state", None)))

    def restore(self, layer: BaseTunerLayer) -> None:
        """Make `layer` hold the module with its first weight, on the device where the weight is now."""
        now = getattr(layer.get_base_layer(), "weight", None)
        layer.base_layer = self.module
        if self.weight is not None:
            self.module.weight = self.weight.to(now.device) if isinstance(now, Tensor) else self.weight
        if self.state is not None:
            self.module.state = self.state


def set_backend(layer: BaseTunerLayer, model: nn.Module) -> None:
    """Give `layer` PEFT's way to read and write its module's weight, where the weight is quantized."""
    try:
        layer.quantization_backend = resolve_quantization_backend(layer.base_layer, **get_quantization_kwargs(model))
    except ValueError:  # torchao without its config: `why_fixed` refuses to merge then
        layer.quantization_backend = None


def why_fixed(layer: BaseTunerLayer) -> str | None:
    """Why nothing can be added to the weight of the layer's module, in a few words; None where it can."""
    backend = layer.quantization_backend
    if backend is not None:
        if backend.supports_merge:
            return None
        return f"its weight is quantized with {backend.backend_name}, which PEFT cannot quantize again"
    weight = layer.get_base_layer()._parameters.get("weight")
    if type(weight) is nn.Parameter and weight.dtype.is_floating_point and weight.dtype.itemsize > 1:
        return None
    kind = "computed" if weight is None else f"of type {type(weight).__name__} and {weight.dtype}"
    return f"its weight is {kind}, and PEFT cannot write a changed one"


def merged_weight(layer: BaseTunerLayer, updates: Iterable[Tensor], sign: float = 1.0) -> Tensor:
    """The weight of the layer's module with `sign` times the updates. Quantized weights come back in float32."""
    weight = layer.get_base_weight()
    total = weight.float()
    for update in updates:
        total = total + sign * update.to(total)
    return total if layer.quantization_backend is not None else total.to(weight.dtype)


def write_weight(layer: BaseTunerLayer, weight: Tensor) -> None:
    """Put `weight` into the layer's module, in place where it is not quantized."""
    if layer.quantization_backend is not None:
        layer.set_base_weight(weight)
    else:
        with torch.no_grad():
            layer.get_base_layer().weight.copy_(weight)
