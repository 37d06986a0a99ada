"""AdaLoRA during training: its regularisation in the loss, its division of ranks at each step, and its state.

The method is that of Zhang et al. 2023. PEFT's `AdaLoraModel` divides the ranks. The regularisation is added here,
because PEFT adds it in a forward that does not run when the model itself is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel
from torch import Tensor, nn

from frostline.adapters._losses import add_to_loss, arguments
from frostline.core.errors import ConfigError, PlanError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def watch_ranks(model: nn.Module, peft_model: PeftModel) -> None:
    """From now on, add AdaLoRA's regularisation to the `loss` that `model` returns in training.

    It is orth_reg_weight times the mean of ||A A^T - I|| and ||B^T B - I|| over the matrices of its adapter.
    """
    (tuner,) = _tuners([peft_model])
    adapter = tuner.trainable_adapter_name
    if weight := tuner.peft_config[adapter].orth_reg_weight:
        layers = {path: m for path, m in model.named_modules() if isinstance(m, AdaLoraLayer) and adapter in m.lora_A}
        model.register_forward_hook(partial(_regularise, layers, adapter, weight), with_kwargs=True)


def begin_ranks(peft_models: Sequence[PeftModel], steps: int) -> None:
    """Tell AdaLoRA how many optimizer steps the training has. Its schedule of ranks depends on the number.

    Raises `ConfigError` when its first phase (tinit) and its last one (tfinal) leave no step between them.
    """
    for tuner in _tuners(peft_models):
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if config.tinit >= steps - config.tfinal:
            raise ConfigError(
                f"adalora: options: tinit ({config.tinit}) and tfinal ({config.tfinal}) leave none of {steps} steps to "
                "divide the ranks: use smaller ones, or train for more steps"
            )
        tuner.rankallocator.set_total_step(steps)


def step_ranks(peft_models: Sequence[PeftModel], step: int) -> None:
    """Divide AdaLoRA's ranks after optimizer step `step`, counted from 1. The gradients must still be there.

    Raises `PlanError` when one of its matrices has no gradient.
    """
    for tuner in _tuners(peft_models):
        without = [name for name, parameter in _parameters(tuner) if parameter.grad is None]
        if without and step <= _last(tuner):
            raise PlanError(
                f"adalora: {without[0]} has no gradient, but ranks are divided among all matrices: use lora where a "
                "schedule freezes blocks, with optimizer_in_backward, or where blocks may be skipped"
            )
        tuner.update_and_allocate(step)


def ranks_state(peft_models: Sequence[PeftModel]) -> dict[str, Tensor]:
    """AdaLoRA's state beside its matrices: how important each parameter was so far, and which ranks are left."""
    state = {}
    for tuner in _tuners(peft_models):
        place = tuner.trainable_adapter_name
        for average in _AVERAGES:
            for name, value in getattr(tuner.rankallocator, average).items():
                state[f"{place}/{average}/{name}"] = value.detach().cpu().contiguous()
        for name, left in (tuner.peft_config[place].rank_pattern or {}).items():
            state[f"{place}/left/{name}"] = torch.tensor(left)
    return state


def load_ranks_state(peft_models: Sequence[PeftModel], state: Mapping[str, Tensor]) -> None:
    """Put back what `ranks_state` returned."""
    for tuner in _tuners(peft_models):
        place, allocator = tuner.trainable_adapter_name, tuner.rankallocator
        devices = {name: parameter.device for name, parameter in _parameters(tuner)}
        allocator.reset_ipt()
        left: dict[str, list[bool]] = {}
        for key, value in state.items():
            adapter, kind, name = key.split("/")
            if adapter == place and kind == "left":
                left[name] = value.tolist()
            elif adapter == place:
                getattr(allocator, kind)[name] = value.to(devices[name])
        tuner.peft_config[place].rank_pattern = left or None


def _tuners(peft_models: Sequence[PeftModel]) -> Iterator[Any]:
    return (m.base_model for m in peft_models if isinstance(m.base_model, AdaLoraModel))


def _parameters(tuner: Any) -> list[tuple[str, nn.Parameter]]:
    adapter = tuner.trainable_adapter_name
    return [(n, p) for n, p in tuner.model.named_parameters() if "lora_" in n and n.endswith(f".{adapter}")]


def _last(tuner: Any) -> int:
    config = tuner.peft_config[tuner.trainable_adapter_name]
    last: int = config.total_step - config.tfinal - 1
    return last


def _regularise(
    layers: Mapping[str, nn.Module], adapter: str, weight: float, model: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    if not model.training:
        return
    # After a merge the model's own matrices are back in place of the layers.
    present: list[Any] = [layer for path, layer in layers.items() if _at(model, path) is layer]
    squares = [square for layer in present for square in _squares(layer.lora_A[adapter], layer.lora_B[adapter])]
    distances = [torch.linalg.norm(square - torch.eye(len(square), device=square.device)) for square in squares]
    if distances:
        mean = torch.stack([distance.to(distances[-1].device) for distance in distances]).mean()
        add_to_loss(weight * mean, model, arguments(model, args, kwargs), output)


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a @ a.T, b.T @ b
