"""Put the adapters of a plan into a model, and merge them into its weights."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from frostline.adapters._hybrid_config import HybridConfig
from frostline.adapters._kind import PeftAdapter
from frostline.adapters._kinds import KINDS, adapters_in
from frostline.adapters._layer import check_mergeable
from frostline.adapters._peft_methods import quiet_peft
from frostline.anatomy import Anatomy
from frostline.core.errors import FrostlineError
from frostline.core.seeding import derive_seed
from frostline.plan import Frozen, Plan


def add_adapters(model: PreTrainedModel, plan: Plan, anatomy: Anatomy, seed: int) -> tuple[PeftModel, ...]:
    """Add the adapters of `plan` to `model`, in place. A plan without adapters changes nothing.

    After the call, `model` itself computes with the adapters. Each PEFT model that is returned wraps `model` and
    knows one method; it is there to save that method. The first values depend on `seed` alone. They are float32,
    also where the model has a lower precision. `requires_grad` of the model's own tensors does not change.

    Args:
        model: the model.
        plan: says what each block adds.
        anatomy: of the model.
        seed: draws the first values.

    Raises `PlanError` when a block's targets match nothing, `ConfigError` for a wrong option, and `UnsupportedModel`
    when the model cannot have such an adapter.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = sorted({p.device.index for p in required if p.is_cuda})
    made = []
    for adapter in _adapters(plan, anatomy):
        before = _adapted(model, adapter.name)
        with torch.random.fork_rng(devices=devices), quiet_peft():
            torch.manual_seed(derive_seed(seed, adapter.seeded))
            made.append(get_peft_model(model, adapter.config, adapter_name=adapter.name))
        vars(model).pop("peft_config", None)  # it holds one method, and PEFT would reuse it for the next
        adapted = _adapted(model, adapter.name) - before
        if adapter.modules and adapted != set(adapter.modules):
            raise FrostlineError(f"PEFT adapted {sorted(adapted)}, but the plan names {len(adapter.modules)} modules")
        if adapter.finish is not None:
            adapter.finish(model, made[-1])
    _activate(model)  # adding the last method switched the others off
    for parameter, requires_grad in required.items():
        parameter.requires_grad_(requires_grad)
    return tuple(made)


def merge_adapters(peft_models: tuple[PeftModel, ...]) -> Any:
    """Add every adapter's update to its matrix, as PEFT does, and return the model without adapters.

    Modules that carry adapters become float32 first, because rounding to bfloat16 loses most of a small update.

    Raises `PlanError` when an adapter cannot be written as a change of weights. Nothing is changed then.
    """
    model = peft_models[-1].get_base_model()
    check_mergeable(model)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for parameter in layer.get_base_layer().parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.float()
    return peft_models[-1].merge_and_unload()


def _adapters(plan: Plan, anatomy: Anatomy) -> list[PeftAdapter]:
    """One adapter for everything that `HybridModel` makes, then those of PEFT's own methods."""
    members = adapters_in(plan.blocks, anatomy)
    ours = {block.index for kind, block in members if not kind.of_peft}
    adapters = []
    if ours:
        modes = [mode if index in ours else Frozen() for index, mode in enumerate(plan.blocks)]
        adapters.append(PeftAdapter(HybridConfig.of_modes(modes), (), seeded="hybrid"))
    for kind in KINDS.values():
        of_kind = [(member, block) for member, block in members if isinstance(member, kind) and member.of_peft]
        if of_kind:
            adapters += kind.peft_adapters(of_kind, anatomy)
    return adapters


def _adapted(model: nn.Module, name: str) -> set[str]:
    """The paths of the modules that carry an adapter called `name`."""
    layers = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer))
    return {path for path, layer in layers if name in layer._all_available_adapter_names()}


def _activate(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(layer._all_available_adapter_names())
