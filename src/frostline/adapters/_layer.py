"""A module of the model, and the parts that adapters put around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from peft.tuners.beft import BeftLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from frostline.adapters._merging import Unmerged, backend_of, merged_weight, why_fixed, write_weight
from frostline.adapters._rows import by_adapter
from frostline.core.errors import AdapterError

Run = Callable[..., Any]
PARTS = "hybrid_parts"


class AdapterPart(nn.Module):
    """What one adapter adds around one module of the model.

    Its parameters are float32. Their first values leave the model's output as it was. A part that can be merged has
    an `update`, and its `why_not_merged` is None. With `by_row` the part reads nothing but the rows of its input, so
    it can be run on some rows of a batch.
    """

    by_row: ClassVar[bool] = False

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called in place of `module`. `run` calls the module, through the parts of other adapters if there are any."""
        raise NotImplementedError

    def put_around(self, module: nn.Module) -> None:
        """Called once, when the part is put around `module`."""

    def taken_off(self) -> None:
        """Called once, when the part is removed."""

    def why_all_tokens(self) -> str | None:
        """Why it has to run on all tokens of a row at once, in a few words; None where it works token by token."""
        return None

    def update(self, module: nn.Module) -> Tensor:
        """The change of the module's weight that does the same as the part, of the weight's shape.

        Raises `AdapterError` when there is none, because the part depends on the input.
        """
        raise AdapterError(f"a part cannot be merged: {self.why_not_merged()}: use the model with its adapter")

    def why_not_merged(self) -> str | None:
        """Why `update` raises, in a few words; None where it does not."""
        return "the adapter depends on the input, so no change of weights does the same"


class HybridLayer(nn.Module, BaseTunerLayer):
    """`base_layer`, a module of the model, with the parts of the active adapters around it.

    Attributes that the layer does not have are read from the module, so the model finds them as before.
    """

    adapter_layer_names = (PARTS,)
    quantization_backend: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hybrid_parts = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._unmerged: Unmerged | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        names = kwargs.pop("adapter_names", None)
        if names is not None and not self.disable_adapters:
            return self._run_by_row(names, *args, **kwargs)
        base = self.base_layer
        run: Run = base
        for part in self._running():
            run = partial(part, run, base)
        return run(*args, **kwargs)

    def _run_by_row(self, names: Sequence[str], inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `forward`, with the adapter called `names[i]` for row i, whatever adapters are active."""
        output: Tensor = self.base_layer(inputs, *args, **kwargs)
        changed = output
        for name, rows in by_adapter(names, inputs.device).items():
            if name in self.hybrid_parts:
                part, of_base = self.hybrid_parts[name], output[rows]
                changed = changed.index_copy(0, rows, part(lambda *_, y=of_base: y, self.base_layer, inputs[rows]))
        return changed

    def put(self, name: str, part: AdapterPart) -> None:
        """Put `part`, of the adapter called `name`, around the module."""
        part.put_around(self.base_layer)
        self.hybrid_parts[name] = part

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.merged_adapters:
            raise AdapterError(f"Cannot delete adapter '{adapter_name}' while it is merged: use unmerge_adapter first")
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
        """Add the parts' updates to the weight. With `safe_merge`, check first that the result is finite."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.hybrid_parts]
        if not names:
            return
        if safe_merge:
            self.check_finite(names)
        if self.quantization_backend is not None and self._unmerged is None:
            self._unmerged = Unmerged.of(self.base_layer)
        write_weight(self, merged_weight(self, map(self.get_delta_weight, names)))
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Take the updates out again.

        A quantized weight is put back as it was. From others the updates are subtracted, so the weight is the first
        one up to two roundings in its dtype: in bfloat16, up to 1/128 of the larger of the two weights.
        """
        if self._unmerged is not None:
            self._unmerged.restore(self)
            self._unmerged = None
        elif self.merged_adapters:
            write_weight(self, merged_weight(self, map(self.get_delta_weight, self.merged_adapters), -1.0))
        self.merged_adapters.clear()

    def check_finite(self, names: Sequence[str]) -> None:
        """Raise `AdapterError` when merging one of these adapters would give values that are not finite."""
        for name in names:
            if name in self.hybrid_parts and not merged_weight(self, [self.get_delta_weight(name)]).isfinite().all():
                # PEFT's own words, which its users may look for.
                raise AdapterError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken: nothing was merged, "
                    "use an adapter whose values are finite"
                )

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the module's weight that does the same as the adapter. Raises `AdapterError` without one."""
        part: Any = self.hybrid_parts[adapter]
        with torch.no_grad():
            return cast(Tensor, part.update(self.base_layer))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's `convert_to_lora` can make a LoRA of the adapter."""
        return adapter_name in self.hybrid_parts and why_not_merged(self, [adapter_name]) is None

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own also rounds the parameters to the base's dtype.
        if adapter_name in self.hybrid_parts:
            self.hybrid_parts[adapter_name].to(device or device_of(self.base_layer))


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first tensor."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def check_mergeable(model: nn.Module, adapter_names: Sequence[str] | None = None) -> None:
    """Raise `AdapterError` when one of these adapters (by default the active ones) is no change of weights."""
    for path, layer in model.named_modules():
        reason = why_not_merged(layer, adapter_names) if isinstance(layer, BaseTunerLayer) else None
        if reason is not None:
            raise AdapterError(
                f"{path} cannot be merged: {reason}: use the model with its adapter (nothing was merged)"
            )


def why_not_merged(layer: BaseTunerLayer, adapter_names: Sequence[str] | None) -> str | None:
    """Why adapters of one layer, also of PEFT's own, cannot be merged; None where they can."""
    if isinstance(layer, HybridLayer):
        parts = [part for part in layer.called(adapter_names) if isinstance(part, AdapterPart)]
        reasons = (part.why_not_merged() or why_fixed(layer) for part in parts)
        return next((reason for reason in reasons if reason is not None), None)
    base = layer.get_base_layer()
    if isinstance(layer, BeftLayer) and base.bias is None:
        return "it has no bias to add BEFT's to"
    # PEFT adds to what it reads as `weight`. Where that is a result, and no parameter, it would be lost.
    if isinstance(getattr(type(base), "weight", None), property) and backend_of(base, base) is None:
        return why_fixed(layer)
    return None


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
