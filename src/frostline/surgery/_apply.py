"""A plan becomes a model that trains so, in any training loop."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle

from frostline.adapters import adapters_in, add_adapters, check_mergeable, merge_adapters
from frostline.anatomy import Anatomy, Tensor, Trained, find_anatomy, notices, select, tensor_hashes, untie
from frostline.core.errors import PlanError
from frostline.plan import Plan
from frostline.surgery._forward import check_forward, install_forward
from frostline.surgery._frozen import keep_frozen_out
from frostline.surgery._precision import align_dtypes
from frostline.surgery._rows import fold_rows, rows_name, train_rows


@dataclass(frozen=True)
class Applied:
    """What `apply` did to a model.

    `anatomy`, `base` (tensor name -> hash), `base_dtype` and `config` are those of the model before;
    `lr_scales` maps the name of every trained parameter of the model as it is now to its learning-rate scale.
    `plan` is the current one and `first` that which training began with; `changed` is whatever has trained so far, by
    name, also when it lies in blocks that are out of the model while it trains from the activation cache; `originals`
    are the values that some of it began with. `adapters` names the trainable parameters that the plan added, by the
    methods of `peft_models`.
    """

    plan: Plan
    first: Plan
    seed: int
    anatomy: Anatomy = field(repr=False)
    base: Mapping[str, str] = field(repr=False)
    base_dtype: str
    config: Any = field(repr=False)
    lr_scales: Mapping[str, float] = field(repr=False)
    changed: Mapping[str, nn.Parameter] = field(repr=False)
    originals: Mapping[str, torch.Tensor] = field(repr=False)
    notices: tuple[str, ...]
    adapters: frozenset[str] = field(repr=False)
    peft_models: tuple[PeftModel, ...] = field(repr=False)
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
        raise PlanError(
            f"the model already carries the plan '{carried.plan.strategy}': load it afresh to apply another"
        )
    anatomy = find_anatomy(model)
    trained = select(plan, anatomy)
    check_forward(model, plan, anatomy)
    base, base_dtype, config = tensor_hashes(model), str(model.dtype), copy.deepcopy(model.config)
    if plan.untie:
        untie(model)
    own = set(model.parameters())
    _widen(model, _copied(plan, anatomy), anatomy)
    peft_models = add_adapters(model, plan, anatomy, seed)
    adapters = [name for name, added in model.named_parameters() if added not in own and added.requires_grad]
    _widen(model, (item.tensor for item in trained), anatomy)
    lr_scales = {_trained_name(model, item): item.lr_scale for item in trained}
    lr_scales |= _adapter_scales(adapters, plan, anatomy)
    hooks = _train(model, plan, anatomy, lr_scales)
    applied = Applied(
        plan=plan,
        first=plan,
        seed=seed,
        anatomy=anatomy,
        base=base,
        base_dtype=base_dtype.removeprefix("torch."),
        config=config,
        lr_scales=lr_scales,
        changed=_parameters(model, lr_scales),
        originals={},
        notices=tuple(notices(plan, anatomy)),
        adapters=frozenset(adapters),
        peft_models=peft_models,
        hooks=hooks,
    )
    setattr(model, _ATTRIBUTE, applied)
    return applied


def change(plan: Plan, model: Any, *, keep_originals: bool = False) -> Applied:
    """Make `model`, which carries a plan, train as another says from here on. Nothing that it learned is lost.

    What the new plan freezes keeps its values. Adapters and matrices that train in part are made when a plan is
    applied, so a later one may freeze, thaw and scale them but not add others; nor may it untie a head or change the
    forward pass. `keep_originals` keeps a copy of what trains now for the first time, so that a delta from before can
    be put in. Raises `UserError` when it would, or when the plan does not fit the model.
    """
    applied = applied_to(model)
    if applied is None:
        raise PlanError("the model carries no plan that could change: call frostline.apply(plan, model) first")
    if plan == applied.plan:
        return applied
    _check_change(applied.first, plan)
    trained = select(plan, applied.anatomy)
    present = {**applied.changed, **dict(model.named_parameters())}
    lr_scales = {_present_name(present, item): item.lr_scale for item in trained}
    lr_scales |= _adapter_scales(applied.adapters, plan, applied.anatomy)
    _remove_hooks(applied)
    new = {name: present[name] for name in lr_scales if name not in applied.changed}
    kept = {name: parameter.detach().cpu().clone() for name, parameter in new.items()} if keep_originals else {}
    _widen(model, (item.tensor for item in trained), applied.anatomy)
    hooks = _train(model, plan, applied.anatomy, lr_scales)
    so_far = {**applied.changed, **_parameters(model, lr_scales)}
    changed = replace(
        applied, plan=plan, lr_scales=lr_scales, changed=so_far, hooks=hooks, originals={**applied.originals, **kept}
    )
    setattr(model, _ATTRIBUTE, changed)
    return changed


def remember(names: Iterable[str], model: Any) -> Applied:
    """Count parameters called `names` among what has trained, under plans before the current one: in float32."""
    applied = applied_to(model)
    assert applied is not None, "only a model under a plan has a past"
    past = set(names) - set(applied.changed)
    if past:
        _widen(model, (tensor for tensor in applied.anatomy.tensors if tensor.name in past), applied.anatomy)
        _remove_hooks(applied)
        hooks = _hooks(model, applied.plan, applied.anatomy)
        applied = replace(applied, changed={**applied.changed, **_parameters(model, past)}, hooks=hooks)
        setattr(model, _ATTRIBUTE, applied)
    return applied


def applied_to(model: nn.Module) -> Applied | None:
    """What `apply` did to `model`, or None."""
    found: Applied | None = getattr(model, _ATTRIBUTE, None)
    return found


def to_plain(model: Any) -> Any:
    """The model as an ordinary transformers one: LoRA merged as PEFT merges it, rows back in their matrices.

    Raises `UserError` when the model carries no plan, or one that changes what its blocks compute.
    """
    applied = applied_to(model)
    if applied is None:
        raise PlanError("the model carries no plan: there is nothing to merge")
    if applied.plan.forward.interacts:
        raise PlanError(
            "the plan's residual interaction is no part of an ordinary model: go on with the model as it is"
        )
    check_mergeable(model)
    _remove_hooks(applied)
    delattr(model, _ATTRIBUTE)
    fold_rows(model)
    return merge_adapters(applied.peft_models) if applied.peft_models else model


def _train(model: Any, plan: Plan, anatomy: Anatomy, lr_scales: Mapping[str, float]) -> tuple[RemovableHandle, ...]:
    """Let exactly the parameters of `lr_scales` train, and give the hooks that keep it so."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in lr_scales)
        if name not in lr_scales:
            parameter.grad = None
    return _hooks(model, plan, anatomy)


def _parameters(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def _hooks(model: Any, plan: Plan, anatomy: Anatomy) -> tuple[RemovableHandle, ...]:
    aligned, changed = align_dtypes(model, anatomy), install_forward(model, plan, anatomy)
    return (*aligned, *changed, keep_frozen_out(model, plan, anatomy))


def _remove_hooks(applied: Applied) -> None:
    for hook in applied.hooks:
        hook.remove()


def _check_change(first: Plan, plan: Plan) -> None:
    if len(plan.blocks) != len(first.blocks):
        raise PlanError(f"the plan '{plan.strategy}' has {len(plan.blocks)} blocks, the model {len(first.blocks)}")
    for what in ("untie", "forward"):
        if getattr(plan, what) != getattr(first, what):
            raise PlanError(f"a plan cannot change {what} while training: give it to the first plan")
    for index, (made, wanted) in enumerate(zip(first.blocks, plan.blocks, strict=True)):
        if wanted.structure is not None and wanted.structure != made.structure:
            raise PlanError(
                f"block {index}: a plan cannot add {wanted.mode} while training: the first plan has {made.mode} there"
            )


def _present_name(present: Mapping[str, nn.Parameter], item: Trained) -> str:
    """The parameter that holds a trained tensor, in a model where some matrices train in part already."""
    name = rows_name(item.tensor.name) if item.rows < 1 else item.tensor.name
    if name not in present:
        raise PlanError(f"{item.tensor.name} trains in part since the first plan, and cannot train whole now")
    return name


def _trained_name(model: nn.Module, item: Trained) -> str:
    return train_rows(model, item) if item.rows < 1 else item.tensor.name


def _widen(model: nn.Module, trained: Iterable[Tensor], anatomy: Anatomy) -> None:
    """Convert to float32 what trains: a block as a whole, so that it computes in one dtype."""
    trained = list(trained)
    names = {tensor.name for tensor in trained}
    for index in {tensor.block for tensor in trained if tensor.block is not None}:
        names |= {tensor.name for tensor in anatomy.blocks[index].tensors}
    for name, parameter in model.named_parameters():
        if name in names and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _copied(plan: Plan, anatomy: Anatomy) -> Iterable[Tensor]:
    """Tensors of the blocks of which copies train, in the copied tensors' dtype."""
    adapters = adapters_in(plan.blocks, anatomy)
    return (tensor for kind, block in adapters for tensor in kind.added(block, anatomy).copied)


def _adapter_scales(names: Iterable[str], plan: Plan, anatomy: Anatomy) -> dict[str, float]:
    """The learning-rate scales of those adapters' parameters whose block has adapters in the plan."""
    scales = {f"{block.name}.": kind.mode.lr_scale for kind, block in adapters_in(plan.blocks, anatomy)}
    return {name: scale for name in names for place, scale in scales.items() if name.startswith(place)}
