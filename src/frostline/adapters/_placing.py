"""Where the parts of an adapter go: around modules of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from frostline.adapters._layer import AdapterPart, HybridLayer, device_of, submodule, without_adapters
from frostline.adapters._merging import backend_of
from frostline.core.errors import AdapterError

_HEADS = (*SEQ_CLS_HEAD_NAMES, "qa_outputs")
"""Names of heads that PEFT adds for a `task_type` without a look at the model."""


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


def check_trained_whole(model: nn.Module, names: Sequence[str], paths: Sequence[str]) -> None:
    """Raise `AdapterError` for `modules_to_save` that match nothing, or that hold a module with a part.

    Args:
        model: the model.
        names: ends of the paths of modules, as PEFT reads them.
        paths: of the modules with parts, in the model without adapters.
    """
    modules = [without_adapters(path) for path, _ in model.named_modules()]
    for name in names:
        found = [path for path in modules if path.endswith(name)]
        if not found and name not in _HEADS:
            raise AdapterError(f"HybridConfig: modules_to_save: {name} matches no module: use names of the model's own")
        for path in found:
            inside = next((place for place in paths if f"{place}.".startswith(f"{path}.")), None)
            if inside is not None:
                raise AdapterError(
                    f"HybridConfig: modules_to_save: {name} trains {inside} whole, which carries the adapter: use one "
                    "of both"
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
