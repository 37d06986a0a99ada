"""Whatever a plan adds to a model, put in."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from frostline.adapters._hybrid import HybridConfig
from frostline.adapters._kind import PeftAdapter
from frostline.adapters._kinds import KINDS, adapters_in
from frostline.adapters._layer import check_mergeable
from frostline.adapters._peft_methods import quiet_peft
from frostline.anatomy import Anatomy
from frostline.core.errors import FrostlineError
from frostline.core.seeding import derive_seed
from frostline.plan import Frozen, Plan


def add_adapters(model: PreTrainedModel, plan: Plan, anatomy: Anatomy, seed: int) -> tuple[PeftModel, ...]:
    """Put what the plan's blocks add into `model`, in place; nothing when they add nothing.

    `model` itself computes with it from here on. Each PEFT model that is returned wraps it and knows one method, to
    save that. First values are drawn from `seed` alone, in float32 also over a base of lower precision. Which of the
    model's own tensors require gradients stays as it was.

    Args:
        model: the model.
        plan: says what each block adds.
        anatomy: the model's.
        seed: draws first values.

    Raises `UserError` when a block's targets match nothing, or a method does not fit the model.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = sorted({p.device.index for p in required if p.is_cuda})
    made = []
    for adapter in _adapters(plan, anatomy):
        before = _adapted(model, adapter.name)
        with torch.random.fork_rng(devices=devices), quiet_peft():
            torch.manual_seed(derive_seed(seed, adapter.seeded))
            made.append(get_peft_model(model, adapter.config, adapter_name=adapter.name))
        vars(model).pop("peft_config", None)  # of one method; the next one would take it for its own
        adapted = _adapted(model, adapter.name) - before
        if adapter.modules and adapted != set(adapter.modules):
            raise FrostlineError(f"PEFT adapted {sorted(adapted)}, {len(adapter.modules)} modules were asked for")
        if adapter.finish is not None:
            adapter.finish(model, made[-1])
    _activate(model)  # what the last method has switched off
    for parameter, requires_grad in required.items():
        parameter.requires_grad_(requires_grad)
    return tuple(made)


def merge_adapters(peft_models: tuple[PeftModel, ...]) -> Any:
    """Add every update to its matrix, as PEFT does, and return the model without adapters.

    Raises `UserError`, with nothing changed, when one of them is no change of weights.
    """
    model = peft_models[-1].get_base_model()
    check_mergeable(model)
    return peft_models[-1].merge_and_unload()


def _adapters(plan: Plan, anatomy: Anatomy) -> list[PeftAdapter]:
    """Those of `HybridModel` as one, then those of PEFT's own methods."""
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
