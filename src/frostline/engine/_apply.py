"""A plan becomes a model that trains so, in any training loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle

from frostline.adapters import add_lora, merge_lora
from frostline.anatomy import Anatomy, Trained, find_anatomy, notices, select, untie
from frostline.core.errors import UserError
from frostline.engine._fingerprint import tensor_hashes
from frostline.engine._frozen import keep_frozen_out
from frostline.engine._precision import align_dtypes
from frostline.engine._rows import fold_rows, train_rows
from frostline.plan import Lora, Plan


@dataclass(frozen=True)
class Applied:
    """What `apply` did to a model.

    `anatomy`, `base` (tensor name -> hash), `base_dtype` and `config` are those of the model before;
    `lr_scales` maps the name of every trained parameter of the model as it is now to its learning-rate scale.
    """

    plan: Plan
    seed: int
    anatomy: Anatomy = field(repr=False)
    base: Mapping[str, str] = field(repr=False)
    base_dtype: str
    config: Any = field(repr=False)
    lr_scales: Mapping[str, float] = field(repr=False)
    notices: tuple[str, ...]
    peft_model: PeftModel | None = field(repr=False)
    hooks: tuple[RemovableHandle, ...] = field(repr=False)


_ATTRIBUTE = "_frostline"


def apply(plan: Plan, model: Any, *, seed: int = 0) -> Applied:
    """Make `model` train as `plan` says, in place: freeze, untie, add adapters, set dtypes.

    Afterwards exactly the trained parameters require gradients, and are float32; frozen blocks and
    embeddings stay in eval mode whatever `model.train()` says; nothing below the boundary is differentiated.
    `seed` draws the adapters' initial weights.

    Raises `UserError` when the plan does not fit the model, or the model already carries a plan.
    """
    carried = applied_to(model)
    if carried is not None:
        raise UserError(
            f"the model already carries the plan '{carried.plan.strategy}': load it afresh to apply another"
        )
    anatomy = find_anatomy(model)
    trained = select(plan, anatomy)
    base, base_dtype, config = tensor_hashes(model), str(model.dtype), copy.deepcopy(model.config)
    if plan.untie:
        untie(model)
    own = set(model.parameters())
    peft_model = add_lora(model, plan, anatomy, seed)
    adapters = [name for name, parameter in model.named_parameters() if parameter not in own]
    _widen(model, trained, anatomy)
    lr_scales = {_trained_name(model, item): item.lr_scale for item in trained}
    lr_scales |= {name: _adapter_scale(name, plan, anatomy) for name in adapters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in lr_scales)
    hooks = (*align_dtypes(model, anatomy), keep_frozen_out(model, plan, anatomy))
    applied = Applied(
        plan=plan,
        seed=seed,
        anatomy=anatomy,
        base=base,
        base_dtype=base_dtype.removeprefix("torch."),
        config=config,
        lr_scales=lr_scales,
        notices=tuple(notices(plan, anatomy)),
        peft_model=peft_model,
        hooks=hooks,
    )
    setattr(model, _ATTRIBUTE, applied)
    return applied


def applied_to(model: nn.Module) -> Applied | None:
    """What `apply` did to `model`, or None."""
    found: Applied | None = getattr(model, _ATTRIBUTE, None)
    return found


def to_plain(model: Any) -> Any:
    """The model as an ordinary transformers one: LoRA merged as PEFT merges it, rows back in their matrices.

    Raises `UserError` when the model carries no plan.
    """
    applied = applied_to(model)
    if applied is None:
        raise UserError("the model carries no plan: there is nothing to merge")
    for hook in applied.hooks:
        hook.remove()
    delattr(model, _ATTRIBUTE)
    fold_rows(model)
    return model if applied.peft_model is None else merge_lora(applied.peft_model)


def _trained_name(model: nn.Module, item: Trained) -> str:
    return train_rows(model, item) if item.rows < 1 else item.tensor.name


def _widen(model: nn.Module, trained: tuple[Trained, ...], anatomy: Anatomy) -> None:
    """Convert to float32 what trains: a block as a whole, so that it computes in one dtype."""
    names = {item.tensor.name for item in trained}
    for index in {item.tensor.block for item in trained if item.tensor.block is not None}:
        names |= {tensor.name for tensor in anatomy.blocks[index].tensors}
    for name, parameter in model.named_parameters():
        if name in names and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _adapter_scale(name: str, plan: Plan, anatomy: Anatomy) -> float:
    for mode, block in zip(plan.blocks, anatomy.blocks, strict=True):
        if isinstance(mode, Lora) and name.startswith(block.name + "."):
            return mode.lr_scale
    raise AssertionError(f"adapter parameter {name} lies in no LoRA block")
