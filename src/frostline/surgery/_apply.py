"""Apply a plan to a model, so that it trains as the plan says in any training loop."""

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
from frostline.anatomy import Anatomy, Tensor, Trained, find_anatomy, notices, select, tensor_hashes, text_model, untie
from frostline.core.errors import PlanError
from frostline.plan import Plan
from frostline.surgery._forward import check_forward, install_forward
from frostline.surgery._frozen import keep_frozen_out
from frostline.surgery._precision import align_dtypes
from frostline.surgery._rows import fold_rows, rows_name, train_rows


@dataclass(frozen=True)
class Applied:
    """What `apply` did to a model.

    Attributes:
        plan: the current plan.
        first: the plan that training began with.
        seed: of the adapters' initial weights.
        anatomy: of the model before.
        base: tensor name -> hash, of the model before.
        base_dtype: of the model before.
        dtypes: name of a parameter -> its dtype before, which it gets again when it no longer trains.
        config: of the model before.
        lr_scales: name of every parameter that trains now -> its learning-rate scale.
        changed: all parameters that have trained so far, by name.
        originals: the values that some of `changed` began with.
        notices: what the user should know, one line each.
        adapters: names of the trainable parameters that the plan added.
        peft_models: PEFT's models that hold them.
        hooks: handles of all hooks on the model.
    """

    plan: Plan
    first: Plan
    seed: int
    anatomy: Anatomy = field(repr=False)
    base: Mapping[str, str] = field(repr=False)
    base_dtype: str
    dtypes: Mapping[str, torch.dtype] = field(repr=False)
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

    Afterwards exactly the trained parameters require gradients, and they are float32. Frozen blocks and embeddings stay
    in eval mode, even after `model.train()`. No backward pass runs below the boundary.

    Args:
        plan: a mode for every block.
        model: a transformers model.
        seed: of the adapters' initial weights.

    Raises `PlanError` when the plan does not fit the model, or the model already has a plan.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan: it should be a frostline.Plan, not {type(plan).__name__}: use frostline.make_plan")
    carried = applied_to(model)
    if carried is not None:
        raise PlanError(
            f"the model already has the plan '{carried.plan.strategy}': load the model again to apply another plan"
        )
    anatomy = find_anatomy(model)
    trained = select(plan, anatomy)
    check_forward(model, plan, anatomy)
    base, base_dtype, config = tensor_hashes(model), str(model.dtype), copy.deepcopy(model.config)
    if plan.untie:
        untie(model)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    own = set(model.parameters())
    _to_float32(model, _copied(plan, anatomy), anatomy)
    peft_models = add_adapters(model, plan, anatomy, seed)
    adapters = [name for name, added in model.named_parameters() if added not in own and added.requires_grad]
    _to_float32(model, (item.tensor for item in trained), anatomy)
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
        dtypes={name: dtype for name, dtype in dtypes.items() if not name.startswith(_partly(trained, anatomy))},
        config=config,
        lr_scales=lr_scales,
        changed=_parameters(model, lr_scales),
        originals={},
        notices=tuple(notices(plan, anatomy)),
        adapters=frozenset(adapters),
        peft_models=peft_models,
        hooks=hooks,
    )
    note(applied, model)
    return applied


def change(plan: Plan, model: Any, *, keep_originals: bool = False) -> Applied:
    """Make `model`, which has a plan, train as another plan says from now on.

    What the new plan freezes keeps its values, in the dtype that it had before it trained: a float32 copy in training
    would stay for nothing. (In bfloat16 this rounds what was learned to 8 bits.) Adapters, and matrices of which some
    rows train, are made by `apply`. So a later plan may freeze them, train them again or change their learning-rate
    scale, but it cannot add others. It also cannot untie a head or change the forward pass.

    Args:
        plan: the new plan.
        model: a model to which `apply` was applied.
        keep_originals: keep a copy of what trains now for the first time, so that an earlier delta can be loaded later.

    Raises `PlanError` when the plan needs what a later plan cannot do, or does not fit the model.
    """
    applied = applied_to(model)
    if applied is None:
        raise PlanError("the model has no plan that could change: use frostline.apply(plan, model) first")
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
    _to_float32(model, (item.tensor for item in trained), applied.anatomy, applied.dtypes)
    hooks = _train(model, plan, applied.anatomy, lr_scales)
    so_far = {**applied.changed, **_parameters(model, lr_scales)}
    changed = replace(
        applied, plan=plan, lr_scales=lr_scales, changed=so_far, hooks=hooks, originals={**applied.originals, **kept}
    )
    note(changed, model)
    return changed


def remember(names: Iterable[str], model: Any) -> Applied:
    """Record that the parameters `names` have trained under an earlier plan."""
    applied = applied_to(model)
    assert applied is not None, "the model has a plan"
    if past := set(names) - set(applied.changed):
        applied = replace(applied, changed={**applied.changed, **_parameters(model, past)})
        note(applied, model)
    return applied


def renew(model: nn.Module) -> None:
    """Note the parameters that `model` has now, where others took the place of those that trained (FSDP2).

    Nothing else holds the earlier ones, so their memory is free.
    """
    applied = applied_to(model)
    assert applied is not None, "the model has a plan"
    text = text_model(model)
    now = dict(text.named_parameters(remove_duplicate=False))
    note(replace(applied, changed={name: now[name] for name in applied.changed}), text)


def applied_to(model: nn.Module) -> Applied | None:
    """What `apply` did to `model`, or None."""
    found: Applied | None = getattr(model, _ATTRIBUTE, None) or getattr(text_model(model), _ATTRIBUTE, None)
    return found


def note(applied: Applied, model: nn.Module) -> None:
    """Remember with `model` what was done to it."""
    setattr(model, _ATTRIBUTE, applied)


def check_plain(model: Any) -> Applied:
    """What `apply` did to a model that can be turned into an ordinary transformers model.

    Raises `PlanError` when the model has no plan, or its plan changes what blocks compute.
    """
    applied = applied_to(model)
    if applied is None:
        raise PlanError("the model has no plan, so there is nothing to merge: use the model as it is")
    if (reason := applied.plan.forward.why_not_plain) is not None:
        raise PlanError(f"nothing can be merged, because an ordinary model differs: {reason}: use the model as it is")
    check_mergeable(model)
    return applied


def to_plain(model: Any) -> Any:
    """Turn the model into an ordinary transformers model: LoRA is merged by PEFT, rows go back into their matrices.

    All its tensors then have one dtype. It is float32 where anything that trained (float32) or was merged (in float32)
    differs from the rest, so that nothing is rounded.

    Raises `PlanError` as `check_plain` does.
    """
    applied = check_plain(model)
    _remove_hooks(applied)
    delattr(model, _ATTRIBUTE)
    fold_rows(model)
    plain: Any = merge_adapters(applied.peft_models) if applied.peft_models else model
    return one_dtype(plain)


def one_dtype(model: Any) -> Any:
    """`model` in float32 if its tensors differ in dtype: a checkpoint has one dtype, and loading rounds the others."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    quantized = getattr(model, "is_quantized", False)  # cannot be converted
    return model.to(torch.float32) if len(dtypes) > 1 and not quantized else model


def _train(model: Any, plan: Plan, anatomy: Anatomy, lr_scales: Mapping[str, float]) -> tuple[RemovableHandle, ...]:
    """Let exactly the parameters in `lr_scales` train, and give the hooks that keep the rest frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in lr_scales)
        if name not in lr_scales:
            parameter.grad = None
    return _hooks(model, plan, anatomy)


def _parameters(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def _hooks(model: Any, plan: Plan, anatomy: Anatomy) -> tuple[RemovableHandle, ...]:
    aligned, changed = align_dtypes(model, anatomy), install_forward(model, plan, anatomy)
    return (*aligned, *changed, *keep_frozen_out(model, plan, anatomy))


def _remove_hooks(applied: Applied) -> None:
    for hook in applied.hooks:
        hook.remove()


def _check_change(first: Plan, plan: Plan) -> None:
    if len(plan.blocks) != len(first.blocks):
        raise PlanError(
            f"the plan '{plan.strategy}' has {len(plan.blocks)} blocks, the model {len(first.blocks)}: use a plan for "
            "this model"
        )
    for what in ("untie", "frozen_dropout", "forward"):
        if getattr(plan, what) != getattr(first, what):
            raise PlanError(f"a plan cannot change {what} during training: use it in the first plan")
    for index, (made, mode) in enumerate(zip(first.blocks, plan.blocks, strict=True)):
        if mode.structure is not None and mode.structure != made.structure:
            raise PlanError(
                f"block {index}: a plan cannot add {mode.mode} during training, and the first plan has {made.mode} "
                f"there: use {mode.mode} in the first plan"
            )


def _present_name(present: Mapping[str, nn.Parameter], item: Trained) -> str:
    """The parameter that holds a trained tensor, in a model where only some rows of some matrices train."""
    name = rows_name(item.tensor.name) if item.rows < 1 else item.tensor.name
    if name not in present:
        raise PlanError(
            f"{item.tensor.name}: only some rows train since the first plan, so it cannot train as a whole now: use "
            "partial for this block"
        )
    return name


def _trained_name(model: nn.Module, item: Trained) -> str:
    return train_rows(model, item) if item.rows < 1 else item.tensor.name


def _to_float32(
    model: nn.Module, trained: Iterable[Tensor], anatomy: Anatomy, otherwise: Mapping[str, torch.dtype] | None = None
) -> None:
    """Convert to float32 what trains. A block is converted as a whole, so that it computes in one dtype.

    Args:
        model: whose parameters are converted.
        trained: what trains.
        anatomy: of the model.
        otherwise: name -> the dtype that a parameter gets again where it does not train.
    """
    trained = list(trained)
    names = {tensor.name for tensor in trained}
    for index in {tensor.block for tensor in trained if tensor.block is not None}:
        names |= {tensor.name for tensor in anatomy.blocks[index].tensors}
    others = otherwise or {}
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if name in names else others.get(name)
        if dtype is not None and dtype != parameter.dtype and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _partly(trained: Iterable[Trained], anatomy: Anatomy) -> tuple[str, ...]:
    """The names of the blocks in which some rows of a matrix train. Their other rows are float32 to the end."""
    blocks = {item.tensor.block for item in trained if item.rows < 1}
    return tuple(f"{block.name}." for block in anatomy.blocks if block.index in blocks)


def _copied(plan: Plan, anatomy: Anatomy) -> Iterable[Tensor]:
    """The tensors of which adapters train a copy. They are converted first, because a copy has their dtype."""
    adapters = adapters_in(plan.blocks, anatomy)
    return (tensor for kind, block in adapters for tensor in kind.added(block, anatomy).copied)


def _adapter_scales(names: Iterable[str], plan: Plan, anatomy: Anatomy) -> dict[str, float]:
    """The learning-rate scales of those adapter parameters whose block has an adapter in `plan`."""
    scales = {f"{block.name}.": kind.mode.lr_scale for kind, block in adapters_in(plan.blocks, anatomy)}
    return {name: scale for name in names for place, scale in scales.items() if name.startswith(place)}
