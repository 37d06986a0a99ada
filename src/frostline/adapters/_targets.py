"""Which weight matrices of a block a plan's adapters go beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from frostline.anatomy import Anatomy, Block, Linear, Role, attentions, sides
from frostline.core.errors import UserError
from frostline.plan import Bottleneck, Lora, Peft, Plan


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
        for linear in matrices(mode, block, anatomy.model_type)
    )


def matrices(mode: Lora | Bottleneck | Peft, block: Block, model_type: str) -> Sequence[Linear]:
    """The matrices of a block that a mode goes beside.

    Raises `UserError`, with the names that the block has, when its targets match nothing.
    """
    if isinstance(mode.targets, tuple):
        return _named(mode, mode.targets, block)
    group = mode.targets
    if group == "default" and isinstance(mode, Bottleneck):
        group = "qkv" if mode.kind == "parallel" else "outputs"
    linears = adaptable(block)
    chosen = _group(group, block, linears, model_type)
    if not chosen:
        raise UserError(f"block {block.index}: {_kind(mode)} targets: {group} matches nothing, {_there(block)}")
    return chosen


def lora_parameters(target: LoraTarget) -> int:
    """Parameters of one target's A and B, r (in + out), and of its gate, in + 1."""
    within = target.options.r * (target.linear.in_features + target.linear.out_features)
    return within + target.options.gate * (target.linear.in_features + 1)


def prefix_widths(block: Block) -> tuple[int, int]:
    """How many numbers a token's keys and values have in the block's self-attention.

    Raises `UserError` where keys are made from a latent vector.
    """
    found = attentions(block)
    if not found or any(sides(linear) == "kv" for linear in found[0].inputs):
        raise UserError(f"block {block.index}: prefix: its attention makes no keys and values of its own")
    return found[0].k, found[0].v


def _group(group: str, block: Block, linears: Sequence[Linear], model_type: str) -> Sequence[Linear]:
    attention = [linear for linear in linears if linear.role is Role.ATTENTION]
    feed_forward = [linear for linear in linears if linear.role is Role.FEED_FORWARD]
    out_of_attention = [found.output for found in attentions(block)]
    if group == "default":
        return matching(PEFT_DEFAULTS.get(model_type, ()), linears) or attention
    if group == "attention":
        return attention
    if group == "feed_forward":
        return feed_forward
    if group == "qkv":
        return [linear for linear in attention if linear not in out_of_attention]
    if group == "down":
        return leading_out(feed_forward)
    if group == "outputs":
        return [linear for linear in attention if linear in out_of_attention] + leading_out(feed_forward)
    return linears


def leading_out(feed_forward: Sequence[Linear]) -> list[Linear]:
    """Those of a feed-forward's matrices that lead back to the width of what enters it."""
    if not feed_forward:
        return []
    hidden = feed_forward[0].in_features
    found = [m for m in feed_forward if m.out_features == hidden and m.in_features != hidden]
    return found or [m for m in feed_forward if m.out_features == hidden][-1:]


def _kind(mode: Lora | Bottleneck | Peft) -> str:
    if isinstance(mode, Bottleneck):
        return f"{mode.kind} adapter"
    return "lora" if isinstance(mode, Lora) else mode.method


def _named(mode: Lora | Bottleneck | Peft, names: tuple[str, ...], block: Block) -> list[Linear]:
    linears = adaptable(block)
    for name in names:
        if matching((name,), linears):
            continue
        if matching((name,), block.linears):
            raise UserError(
                f"block {block.index}: {_kind(mode)} target '{name}' is a router or holds several experts "
                f"in one tensor, which cannot be adapted here, {_there(block)}"
            )
        raise UserError(f"block {block.index}: {_kind(mode)} target '{name}' matches nothing, {_there(block)}")
    if not names:
        raise UserError(f"block {block.index}: {_kind(mode)} targets: the list is empty, {_there(block)}")
    return matching(names, linears)


def adaptable(block: Block) -> list[Linear]:
    """The block's matrices that are modules of one matrix: no experts that lie together, and no router to them."""
    experts = {linear.copies for linear in block.linears if linear.copies > 1}
    return [linear for linear in block.linears if linear.copies == 1 and linear.out_features not in experts]


def matching(names: str | Sequence[str], linears: Sequence[Linear]) -> list[Linear]:
    """Those whose path is, or ends in, one of the names; a lone string is a pattern for the whole path."""
    if isinstance(names, str):
        return [linear for linear in linears if re.fullmatch(names, linear.name)]
    return [linear for linear in linears if f".{linear.name}".endswith(tuple(f".{name}" for name in names))]


def _there(block: Block) -> str:
    within = [linear.name.removeprefix(f"{block.name}.") for linear in adaptable(block)]
    return f"the block has {', '.join(within) or 'no matrix that can be adapted'}"
