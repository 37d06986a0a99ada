"""Which weight matrices of a block a plan's LoRA goes beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from frostline.anatomy import Anatomy, Block, Linear, Role
from frostline.core.errors import UserError
from frostline.plan import Lora, Plan


@dataclass(frozen=True)
class LoraTarget:
    """One matrix W [out, in] that is used as W + (alpha / r) B A, with A [r, in] and B [out, r]."""

    linear: Linear
    options: Lora


def lora_targets(plan: Plan, anatomy: Anatomy) -> tuple[LoraTarget, ...]:
    """The matrices that get a low-rank update under `plan`, in the model's order.

    `default` takes what PEFT adapts for the model's family, or all of the attention's matrices where PEFT
    does not know the family or its names are not in the block. Routers and experts that lie together in one
    tensor are left alone: PEFT adapts modules of one matrix.

    Raises `UserError`, with the names that the block has, when a block's targets match nothing.
    """
    return tuple(
        LoraTarget(linear, mode)
        for mode, block in zip(plan.blocks, anatomy.blocks, strict=True)
        if isinstance(mode, Lora)
        for linear in _chosen(mode.targets, block, anatomy.model_type)
    )


def lora_parameters(target: LoraTarget) -> int:
    """Parameters of one target's A and B: r (in + out)."""
    return target.options.r * (target.linear.in_features + target.linear.out_features)


def _chosen(targets: str | tuple[str, ...], block: Block, model_type: str) -> Sequence[Linear]:
    linears = _adaptable(block)
    attention = [linear for linear in linears if linear.role is Role.ATTENTION]
    if isinstance(targets, tuple):
        return _named(targets, block)
    if targets == "default":
        chosen = _matching(PEFT_DEFAULTS.get(model_type, ()), linears) or attention
    elif targets == "attention":
        chosen = attention
    elif targets == "feed_forward":
        chosen = [linear for linear in linears if linear.role is Role.FEED_FORWARD]
    else:
        chosen = linears
    if not chosen:
        raise UserError(f"block {block.index}: lora targets: {targets} matches nothing, {_there(block)}")
    return chosen


def _named(names: tuple[str, ...], block: Block) -> list[Linear]:
    linears = _adaptable(block)
    for name in names:
        if _matching((name,), linears):
            continue
        if _matching((name,), block.linears):
            raise UserError(
                f"block {block.index}: lora target '{name}' is a router or holds several experts in one tensor, "
                f"which LoRA cannot adapt here, {_there(block)}"
            )
        raise UserError(f"block {block.index}: lora target '{name}' matches nothing, {_there(block)}")
    if not names:
        raise UserError(f"block {block.index}: lora targets: the list is empty, {_there(block)}")
    return _matching(names, linears)


def _adaptable(block: Block) -> list[Linear]:
    experts = {linear.copies for linear in block.linears if linear.copies > 1}
    return [linear for linear in block.linears if linear.copies == 1 and linear.out_features not in experts]


def _matching(names: str | Sequence[str], linears: Sequence[Linear]) -> list[Linear]:
    """Those whose path is, or ends in, one of the names; a lone string is a pattern for the whole path."""
    if isinstance(names, str):
        return [linear for linear in linears if re.fullmatch(names, linear.name)]
    return [linear for linear in linears if f".{linear.name}".endswith(tuple(f".{name}" for name in names))]


def _there(block: Block) -> str:
    within = [linear.name.removeprefix(f"{block.name}.") for linear in _adaptable(block)]
    return f"the block has {', '.join(within) or 'no matrix that LoRA can adapt'}"
