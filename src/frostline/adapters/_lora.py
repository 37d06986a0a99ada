"""LoRA on just the blocks that a plan names, made, merged and saved by PEFT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from frostline.adapters._targets import LoraTarget, lora_targets
from frostline.anatomy import Anatomy
from frostline.core.errors import FrostlineError
from frostline.core.seeding import derive_seed
from frostline.plan import Plan

ADAPTER = "default"
_WRAPPED = "base_model.model."

T = TypeVar("T")


def add_lora(model: PreTrainedModel, plan: Plan, anatomy: Anatomy, seed: int) -> PeftModel | None:
    """Put the plan's low-rank updates into `model`, in place; None when the plan has no LoRA block.

    `model` itself computes with them from here on; the returned PEFT model wraps it, to save and to merge.
    A is drawn from `seed` alone and B is 0, so the outputs are the base model's until the first step. Both
    are float32, also over a base of lower precision. Which of the model's own tensors require gradients
    stays as it was.

    One PEFT adapter has one dropout: a block with another one has it set on its modules, which PEFT does not
    save with the adapter (the plan does).

    Raises `UserError` when a block's targets match nothing.
    """
    targets = lora_targets(plan, anatomy)
    if not targets:
        return None
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = sorted({p.device.index for p in required if p.is_cuda})
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        torch.manual_seed(derive_seed(seed, "lora"))
        # peft 0.21 reads an attribute that transformers 5 deprecates.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        peft_model = get_peft_model(model, _config(targets, model), adapter_name=ADAPTER)
    for parameter, requires_grad in required.items():
        parameter.requires_grad_(requires_grad)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if layers.keys() != {target.linear.name for target in targets}:
        raise FrostlineError(f"PEFT adapted {sorted(layers)}, {len(targets)} modules were asked for")
    for target in targets:
        rate = target.options.dropout
        layers[target.linear.name].lora_dropout[ADAPTER] = nn.Dropout(rate) if rate else nn.Identity()
    return peft_model


def merge_lora(peft_model: PeftModel) -> PreTrainedModel:
    """Add every update to its matrix, as PEFT does, and return the model without PEFT's modules."""
    return peft_model.merge_and_unload()


def lora_state(peft_model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by their names within the base model: ``<module>.lora_A.weight``, ``...lora_B...``."""
    state = get_peft_model_state_dict(peft_model, adapter_name=ADAPTER, save_embedding_layers=False)
    return {name.removeprefix(_WRAPPED): tensor for name, tensor in state.items()}


def load_lora_state(peft_model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Set the adapter's tensors from `lora_state`'s mapping.

    Raises `FrostlineError` when a tensor is missing, is not one of the adapter's, or has another shape.
    """
    own = lora_state(peft_model)
    wrong = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
    if wrong:
        raise FrostlineError(f"the saved LoRA is not this plan's: {min(wrong)} is missing, unknown or of another size")
    set_peft_model_state_dict(
        peft_model, {_WRAPPED + name: tensor for name, tensor in state.items()}, adapter_name=ADAPTER
    )


def _config(targets: Sequence[LoraTarget], model: PreTrainedModel) -> LoraConfig:
    first = targets[0].options
    return LoraConfig(
        r=first.r,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        target_modules=[target.linear.name for target in targets],
        rank_pattern=_pattern({target.linear.name: target.options.r for target in targets}, first.r),
        alpha_pattern=_pattern({target.linear.name: target.options.alpha for target in targets}, first.alpha),
        fan_in_fan_out=isinstance(model.get_submodule(targets[0].linear.name), Conv1D),
    )


def _pattern(values: Mapping[str, T], default: T) -> dict[str, T]:
    """Those that differ from the default, under keys that PEFT, which reads them as patterns, takes exactly."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != default}


def _shape(state: Mapping[str, Any], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
