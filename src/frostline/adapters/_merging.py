"""Add updates to a module's weight, and take them out again. Quantized weights go through PEFT's own backends.

The sum is computed in float32 and rounded once, to the weight's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import QuantizationBackend, get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn


@dataclass(frozen=True)
class Unmerged:
    """What a quantized module was before a merge, kept to put it back: dequantized values would not give it again."""

    module: nn.Module
    weight: Any
    data: Any
    attributes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> Unmerged:
        weight: Any = getattr(module, "weight", None)
        state: Any = getattr(module, "state", None)
        # PEFT changes attributes of the old weight, and bitsandbytes its `quant_state` in place.
        attributes = dict(getattr(weight, "__dict__", {}))
        if "quant_state" in attributes:
            attributes["quant_state"] = copy.copy(attributes["quant_state"])
        if state is not None and attributes.get("SCB", state) is None:
            # bitsandbytes moves the scales of 8 bits from the weight to the module's state at the first call.
            attributes |= {"CB": weight.data, "SCB": state.SCB}
        return cls(module, weight, getattr(weight, "data", None), attributes)

    def restore(self, layer: BaseTunerLayer) -> None:
        """Make `layer` hold the module with its first weight, on the device where the weight is now."""
        now = getattr(layer.get_base_layer(), "weight", None)
        layer.base_layer = self.module
        if self.weight is None:
            return
        self.weight.data = self.data
        vars(self.weight).update(self.attributes)
        self.module.weight = self.weight
        if isinstance(now, Tensor) and now.device != self.data.device:
            _in_order(self.module)
            self.module.weight = self.weight.to(now.device)


def _in_order(module: nn.Module) -> None:
    """Undo the order in which bitsandbytes holds 4 bits after a call on some CPUs: it does not dequantize that."""
    state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        module.state_dict()  # does it, but for the scales where they are not quantized themselves
        if state.absmax.ndim == 2:
            state.absmax = state.absmax.T.reshape(-1).float()


def backend_of(module: nn.Module, model: nn.Module) -> QuantizationBackend | None:
    """PEFT's way to read and write the module's weight, where the weight is quantized in a way that PEFT knows.

    Args:
        module: the module.
        model: the model that it is in, which may know how it was quantized.
    """
    try:
        return resolve_quantization_backend(module, **get_quantization_kwargs(model))
    except ValueError:  # torchao without its config: `why_fixed` refuses to merge then
        return None


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
    weight = _read_weight(layer)
    total = weight.float()
    for update in updates:
        total = total + sign * update.to(total)
    return total if layer.quantization_backend is not None else total.to(weight.dtype)


def _read_weight(layer: BaseTunerLayer) -> Tensor:
    """The weight of the layer's module. The module stays as it is."""
    if layer.quantization_backend is None:
        return cast(Tensor, layer.get_base_weight())
    as_it_is = Unmerged.of(layer.get_base_layer())
    _in_order(layer.get_base_layer())
    weight: Tensor = layer.get_base_weight()
    as_it_is.restore(layer)
    return weight


def write_weight(layer: BaseTunerLayer, weight: Tensor) -> None:
    """Put `weight` into the layer's module, in place where it is not quantized."""
    if layer.quantization_backend is not None:
        layer.set_base_weight(weight)
    else:
        with torch.no_grad():
            layer.get_base_layer().weight.copy_(weight)
