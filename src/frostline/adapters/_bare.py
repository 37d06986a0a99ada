"""A model without its adapters, for as long as something has to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


@contextmanager
def without_adapter_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the model's own modules are in the places of PEFT's layers around them, at any depth."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    seen = {model}
    waiting = [model]
    try:
        while waiting:
            parent = waiting.pop()
            for name, child in parent.named_children():
                own = _own(child)
                if own is not child:
                    replaced.append((parent, name, child))
                    setattr(parent, name, own)
                if own not in seen:
                    seen.add(own)
                    waiting.append(own)
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _own(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            module = module.base_layer
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            return module
