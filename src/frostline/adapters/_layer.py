"""A module of the model, and the parts that adapters put around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.beft import BeftLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from frostline.core.errors import FrostlineError, PlanError

Run = Callable[..., Any]
PARTS = "hybrid_parts"


class AdapterPart(nn.Module):
    """What one adapter adds around one module of the model.

    Its parameters are float32. Their first values leave the model's output as it was. A part that can be merged has
    an `update`, and its `why_not_merged` is None.
    """

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called in place of `module`. `run` calls the module, through the parts of other adapters if there are any."""
        raise NotImplementedError

    def put_around(self, module: nn.Module) -> None:
        """Called once, when the part is put around `module`."""

    def taken_off(self) -> None:
        """Called once, when the part is removed."""

    def update(self, module: nn.Module) -> Tensor:
        """The change of the module's weight that does the same as the part, of the weight's shape.

        Raises `PlanError` when there is none, because the part depends on the input.
        """
        raise PlanError(f"a part cannot be merged: {self.why_not_merged()}: use the model with its adapter")

    def why_not_merged(self) -> str | None:
        """Why `update` raises, in a few words; None where it does not."""
        return "the adapter depends on the input, so no change of weights does the same"


class HybridLayer(nn.Module, BaseTunerLayer):
    """`base_layer`, a module of the model, with the parts of the active adapters around it.

    Attributes that the layer does not have are read from the module, so the model finds them as before.
    """

    adapter_layer_names = (PARTS,)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hybrid_parts = nn.ModuleDict()
        self.merged_adapters: list[str] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        base = self.base_layer
        run: Run = base
        for part in self._running():
            run = partial(part, run, base)
        return run(*args, **kwargs)

    def put(self, name: str, part: AdapterPart) -> None:
        """Put `part`, of the adapter called `name`, around the module."""
        part.put_around(self.base_layer)
        self.hybrid_parts[name] = part

    def delete_adapter(self, adapter_name: str) -> None:
        self._take_off(*(name for name in self.hybrid_parts if name == adapter_name))
        super().delete_adapter(adapter_name)

    def unload(self) -> nn.Module:
        """Remove all parts and return the module."""
        self._take_off(*self.hybrid_parts)
        return self.base_layer

    def _take_off(self, *names: str) -> None:
        for name in names:
            part: Any = self.hybrid_parts[name]
            part.taken_off()

    def called(self, names: Sequence[str] | None) -> list[nn.Module]:
        """The parts of the adapters called `names`; by default of the active adapters."""
        return self._running() if names is None else [self.hybrid_parts[n] for n in names if n in self.hybrid_parts]

    def _running(self) -> list[nn.Module]:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        active = [name for name in self.active_adapters if name in self.hybrid_parts]
        return [self.hybrid_parts[name] for name in active if name not in self.merged_adapters]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the parts' updates to the weight. With `safe_merge`, check first that they are finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.hybrid_parts:
                update = self._update(name)
                if safe_merge and not torch.isfinite(update).all():
                    raise FrostlineError(
                        f"the update of adapter '{name}' has values that are not finite: it was not merged"
                    )
                self._weight().data += update
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract the updates again. The weight is then the first one, up to rounding."""
        while self.merged_adapters:
            self._weight().data -= self._update(self.merged_adapters.pop())

    def _weight(self) -> Tensor:
        weight: Any = self.base_layer.weight
        return cast(Tensor, weight)

    def _update(self, name: str) -> Tensor:
        part: Any = self.hybrid_parts[name]
        with torch.no_grad():
            update: Tensor = part.update(self.base_layer)
        return update.to(self._weight())


def check_mergeable(model: nn.Module, adapter_names: Sequence[str] | None = None) -> None:
    """Raise `PlanError` when one of these adapters (by default the active ones) cannot become a change of weights."""
    for path, layer in model.named_modules():
        if isinstance(layer, BeftLayer) and layer.get_base_layer().bias is None:
            raise PlanError(f"{path} cannot be merged: it has no bias to add BEFT's to: use the model with its adapter")
        if isinstance(layer, HybridLayer):
            for part in layer.called(adapter_names):
                reason = part.why_not_merged() if isinstance(part, AdapterPart) else None
                if reason is not None:
                    raise PlanError(
                        f"{path} cannot be merged: {reason}: use the model with its adapter (nothing was merged)"
                    )


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the parameters that adapters added to `model`, those of PEFT's own methods included."""
    return {
        f"{path}.{name}"
        for path, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        for name, _ in layer.named_parameters(remove_duplicate=False)
        if not name.startswith("base_layer.")
    }


def without_adapters(path: str) -> str:
    """The path that a module has in the model without adapters."""
    return ".".join(step for step in path.split(".") if step != "base_layer")


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The model's own module at `path`, also inside modules that carry adapters."""
    module: Any = model
    for name in path.split(".") if path else ():
        module = getattr(module, name)
        module = module.base_layer if isinstance(module, BaseTunerLayer) else module
    return cast(nn.Module, module)
