"""The names of an adapter's tensors in files: those that they have in a model with this adapter alone.

A module with an adapter is at `base_layer` of its layer. So inside an attention that carries another adapter's prefix,
a matrix is at `self_attn.base_layer.q_proj`, and in a model without the prefix at `self_attn.q_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from frostline.adapters._layer import PARTS, HybridLayer


def keys_alone(model: nn.Module, adapter_name: str, keys: Iterable[str]) -> dict[str, str]:
    """Key in `model` -> key in a model with this adapter alone, still with the adapter's name; for its own keys."""
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, HybridLayer)]
    others = [path for path, layer in layers if adapter_name not in layer.hybrid_parts]
    own = f".{PARTS}.{adapter_name}."
    return {key: _without(key, others) for key in keys if own in key}


def without_name(key: str, adapter_name: str) -> str:
    """A key without the adapter's name."""
    return key.replace(f".{PARTS}.{adapter_name}.", f".{PARTS}.")


def as_pefts(key: str) -> str:
    """The key that PEFT's own LoRA has for a key without the adapter's name."""
    return re.sub(rf"\.{PARTS}\.(A|B)$", r".lora_\1.weight", key)


def _without(key: str, layers: Iterable[str]) -> str:
    for path in sorted(layers, key=len, reverse=True):  # inner ones first, whose paths name the outer ones
        if key.startswith(f"{path}.base_layer."):
            key = path + key.removeprefix(f"{path}.base_layer")
    return key
