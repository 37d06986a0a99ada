"""Where the parts of an adapter go: around modules of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from frostline.adapters._layer import AdapterPart, HybridLayer, device_of, submodule
from frostline.adapters._merging import backend_of
from frostline.core.errors import AdapterError


class Placed(NamedTuple):
    """A part, and the path of the module that it goes around, in the model without adapters."""

    path: str
    part: AdapterPart


def check_places(model: nn.Module, paths: Sequence[str], by_transformers: bool) -> None:
    """Raise `AdapterError` where a part cannot be put around a module.

    Args:
        model: the model.
        paths: of the modules, in the model without adapters.
        by_transformers: transformers' `load_adapter` may be at work. It looks for tensors by their names in the file.
    """
    for path in paths:
        layer = _at(model, path)
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, HybridLayer):
            raise AdapterError(f"{path} carries one of PEFT's own adapters: use unload or merge_and_unload first")
        around = [path[:end] for end, letter in enumerate(path) if letter == "."]
        if by_transformers and any(isinstance(_at(model, at), HybridLayer) and at not in paths for at in around):
            raise AdapterError(
                f"{path} is inside a module that carries another adapter, where transformers does not find the values "
                "of the file: use peft.PeftModel.from_pretrained and its load_adapter for both"
            )


def randomize(part: AdapterPart) -> None:
    """Draw the values that start at zero, from the range that LoRA uses for A."""
    for parameter in part.parameters():
        if not parameter.is_meta and not parameter.any():
            bound = 1 / math.sqrt(parameter.shape[-1])
            nn.init.uniform_(parameter, -bound, bound)


def wrap(model: nn.Module, path: str, adapter_name: str, part: AdapterPart) -> None:
    """Put `part` around the module at `path`.

    Args:
        model: the model.
        path: of the module, in the model without adapters.
        adapter_name: of the adapter that the part belongs to.
        part: the part.
    """
    above, _, name = path.rpartition(".")
    parent, layer = submodule(model, above), _at(model, path)
    if not isinstance(layer, HybridLayer):
        layer = HybridLayer(layer)
        layer.quantization_backend = backend_of(layer.get_base_layer(), model)
        layer.set_adapter(adapter_name)
        setattr(parent, name, layer)
    meta = any(parameter.is_meta for parameter in part.parameters())
    layer.put(adapter_name, part if meta else part.to(device_of(layer.base_layer)))


def _at(model: nn.Module, path: str) -> nn.Module:
    above, _, name = path.rpartition(".")
    layer: nn.Module = getattr(submodule(model, above), name)
    return layer
