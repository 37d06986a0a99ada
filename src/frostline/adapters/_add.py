"""Whatever a plan adds to a model, put in."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from frostline.adapters._hybrid import HybridConfig
from frostline.adapters._layer import check_mergeable
from frostline.adapters._lora import finish_lora, lora_config
from frostline.adapters._peft import quiet_peft
from frostline.adapters._peft_places import check_groups, peft_groups
from frostline.adapters._ranks import watch_ranks
from frostline.anatomy import Anatomy
from frostline.core.seeding import derive_seed
from frostline.plan import Bottleneck, Frozen, Lora, Mixture, Plan, Prefix

ADAPTER, UNNAMED = "default", ("hybrid", "lora")


def add_adapters(model: PreTrainedModel, plan: Plan, anatomy: Anatomy, seed: int) -> tuple[PeftModel, ...]:
    """Put what the plan's blocks add into `model`, in place; nothing when they add nothing.

    `model` itself computes with it from here on. Each PEFT model that is returned wraps it and knows one method, to
    save that. First values are drawn from `seed` alone, in float32 also over a base of lower precision. Which of the
    model's own tensors require gradients stays as it was.

    Raises `UserError` when a block's targets match nothing, or a method does not fit the model.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    groups = peft_groups(plan, anatomy)
    configs = [*_configs(model, plan, anatomy), *((group.name, group.config) for group in groups)]
    made = []
    for name, config in configs:
        devices = sorted({p.device.index for p in required if p.is_cuda})
        with torch.random.fork_rng(devices=devices), quiet_peft():
            torch.manual_seed(derive_seed(seed, name))
            made.append(get_peft_model(model, config, adapter_name=ADAPTER if name in UNNAMED else name))
        if name == "lora":
            finish_lora(model, plan, anatomy)
        vars(model).pop("peft_config", None)  # of one method; the next one would take it for its own
    check_groups(model, groups)
    _activate(model)  # what the last method has switched off
    for parameter, requires_grad in required.items():
        parameter.requires_grad_(requires_grad)
    watch_ranks(model, made)
    return tuple(made)


def merge_adapters(peft_models: tuple[PeftModel, ...]) -> Any:
    """Add every update to its matrix, as PEFT does, and return the model without adapters.

    Raises `UserError`, with nothing changed, when one of them is no change of weights.
    """
    model = peft_models[-1].get_base_model()
    check_mergeable(model)
    return peft_models[-1].merge_and_unload()


def _configs(model: PreTrainedModel, plan: Plan, anatomy: Anatomy) -> list[tuple[str, PeftConfig]]:
    configs: list[tuple[str, PeftConfig]] = []
    ours = tuple(mode if _is_ours(mode) else Frozen() for mode in plan.blocks)
    if any(mode.mode != "frozen" for mode in ours):
        configs.append(("hybrid", HybridConfig.of_modes(ours)))
    if (lora := lora_config(plan, anatomy, model)) is not None:
        configs.append(("lora", lora))
    return configs


def _activate(model: PreTrainedModel) -> None:
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(layer._all_available_adapter_names())


def _is_ours(mode: Any) -> bool:
    if isinstance(mode, Lora):
        return mode.gate
    return isinstance(mode, Bottleneck | Mixture) or (isinstance(mode, Prefix) and mode.length > 0)
