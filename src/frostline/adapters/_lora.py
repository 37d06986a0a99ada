"""LoRA on just the blocks that a plan names, made by PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from frostline.adapters._targets import LoraTarget, lora_targets
from frostline.anatomy import Anatomy
from frostline.core.errors import FrostlineError
from frostline.plan import Plan

T = TypeVar("T")


def lora_config(plan: Plan, anatomy: Anatomy, model: PreTrainedModel) -> LoraConfig | None:
    """PEFT's config of the plan's low-rank updates without gates; None when it has none.

    Raises `UserError` when a block's targets match nothing.
    """
    targets = [target for target in lora_targets(plan, anatomy) if not target.options.gate]
    return _config(targets, model) if targets else None


def finish_lora(model: PreTrainedModel, plan: Plan, anatomy: Anatomy) -> None:
    """Check that PEFT adapted what it was asked to, and set each block's dropout.

    One PEFT adapter has one dropout: a block with another one has it set on its modules, which PEFT does not
    save with the adapter (the plan does).
    """
    targets = {t.linear.name: t.options for t in lora_targets(plan, anatomy) if not t.options.gate}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if layers.keys() != targets.keys():
        raise FrostlineError(f"PEFT adapted {sorted(layers)}, {len(targets)} modules were asked for")
    for name, options in targets.items():
        dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        layers[name].lora_dropout = nn.ModuleDict(dict.fromkeys(layers[name].lora_dropout, dropout))


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
