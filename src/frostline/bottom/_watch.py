"""What has to stay as it is while states are read instead of computed: the modules and the weights of the bottom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from frostline.bottom._below import modules_below
from frostline.bottom._cut import Cut


class BottomWatch:
    """Sees whether someone changed the bottom of `model` since it was made. Weights written through `.data` it misses.

    Args:
        model: the model itself.
        cut: where its bottom ends.
        weights: names of the parameters that the bottom reads.
    """

    def __init__(self, model: nn.Module, cut: Cut, weights: Iterable[str]) -> None:
        self._places: dict[tuple[int, str], tuple[Any, str, Any]] = {}  # a dict of modules, the name in it, the module
        self._weights: dict[str, nn.Parameter] = {}
        for name, module in modules_below(model, cut):
            self._follow(model, name)
            self._weights |= {f"{name}.{own}": p for own, p in module._parameters.items() if p is not None}
        known = dict(model.named_parameters(remove_duplicate=False))
        for name in weights:
            if name in known:
                self._follow(model, name.rpartition(".")[0])
                self._weights[name] = known[name]
        self._trained = {name for name, weight in self._weights.items() if weight.requires_grad}
        self._modules = [(model.get_submodule(name.rpartition(".")[0]), name) for name in self._weights]
        self.note()

    def _follow(self, model: nn.Module, path: str) -> None:
        """Remember which modules stand on the way from `model` to the module `path`."""
        module = model
        for name in path.split(".") if path else ():
            self._places[id(module), name] = (module._modules, name, module._modules[name])
            module = self._places[id(module), name][2]

    def note(self) -> None:
        """Take the weights as they are now for those that belong to the stored states."""
        self._known = self._now()

    @property
    def written(self) -> bool:
        """Whether weights were written to or moved since `note`. Their values may still be the same."""
        return self._now() != self._known

    def change(self) -> str | None:
        """Say in one line what no longer fits the stored states, whatever its values; None where all fits."""
        if any(modules.get(name) is not module for modules, name, module in self._places.values()):
            return "a module below the boundary was replaced"
        for (module, name), weight in zip(self._modules, self._weights.values(), strict=True):
            if module._parameters.get(name.rpartition(".")[2]) is not weight:
                return f"{name}, below the boundary, was replaced"
            if weight.requires_grad and name not in self._trained:
                return f"{name}, below the boundary, is to train now"
        return None

    def _now(self) -> list[Any]:
        return [(weight._version, weight.data_ptr(), weight.dtype) for weight in self._weights.values()]
