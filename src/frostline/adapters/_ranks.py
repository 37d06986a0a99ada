"""AdaLoRA over a training: its regularisation in the loss, its ranks shared out step by step, and its state.

PEFT's `AdaLoraModel` computes both; its own forward, which adds the regularisation, is not called when the model itself
is (Zhang et al. 2023).
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
from frostline.core.errors import UserError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def watch_ranks(model: nn.Module, peft_model: PeftModel) -> None:
    """From here on, add AdaLoRA's regularisation to the `loss` of what `model` returns in training.

    It is (orth_reg_weight) times the mean of ||A A^T - I|| and ||B^T B - I|| over the matrices of its adapter.
    """
    (tuner,) = _tuners([peft_model])
    adapter = tuner.trainable_adapter_name
    if weight := tuner.peft_config[adapter].orth_reg_weight:
        layers = {path: m for path, m in model.named_modules() if isinstance(m, AdaLoraLayer) and adapter in m.lora_A}
        model.register_forward_hook(partial(_regularise, layers, adapter, weight), with_kwargs=True)


def begin_ranks(peft_models: Sequence[PeftModel], steps: int) -> None:
    """Say how many optimizer steps a training has, which AdaLoRA's schedule of ranks goes by.

    Raises `UserError` when its first and last phase leave no step between them.
    """
    for tuner in _tuners(peft_models):
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if config.tinit >= steps - config.tfinal:
            raise UserError(
                f"adalora: options: tinit ({config.tinit}) and tfinal ({config.tfinal}) leave none of {steps} steps to "
                "share out ranks: give smaller ones, or train longer"
            )
        tuner.rankallocator.set_total_step(steps)


def step_ranks(peft_models: Sequence[PeftModel], step: int) -> None:
    """Share out AdaLoRA's ranks after optimizer step number `step`, counted from 1, while the gradients are there.

    Raises `UserError` when some of its matrices have none.
    """
    for tuner in _tuners(peft_models):
        without = [name for name, parameter in _parameters(tuner) if parameter.grad is None]
        if without and step <= _last(tuner):
            raise UserError(
                f"adalora: {without[0]} has no gradient, and ranks are shared out among all matrices: take lora where "
                "a schedule freezes blocks, gradients are freed in the backward pass, or a block may be skipped"
            )
        tuner.update_and_allocate(step)


def ranks_state(peft_models: Sequence[PeftModel]) -> dict[str, Tensor]:
    """What AdaLoRA knows beside its matrices: how important each number was so far, and which ranks are left."""
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
    """The inverse of `ranks_state`."""
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
    # Merging puts the model's own matrices back in the place of the layers.
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
