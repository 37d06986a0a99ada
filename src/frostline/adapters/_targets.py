"""Which weight matrices of a block an adapter goes beside."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS

from frostline.anatomy import Block, Linear, Role, attentions
from frostline.core.errors import PlanError
from frostline.plan import Targets


def matrices(targets: Targets | tuple[str, ...], block: Block, model_type: str, label: str) -> Sequence[Linear]:
    """The matrices of a block that an adapter goes beside.

    `default` means the matrices that PEFT adapts for the model's family. Where PEFT does not know the family, or its
    names are not in the block, it means all matrices of the attention. An adapter goes beside a module that holds one
    matrix, so routers and experts that share one tensor get none.

    Args:
        targets: a group, or names of modules.
        block: the block.
        model_type: the model's family.
        label: the adapter's name in messages.

    Raises `PlanError`, which names the block's matrices, when the targets match nothing.
    """
    if isinstance(targets, tuple):
        return _named(targets, block, label)
    chosen = _group(targets, block, adaptable(block), model_type)
    if not chosen:
        raise PlanError(f"block {block.index}: {label} targets: {targets} matches nothing, {_there(block)}")
    return chosen


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
    """The matrices of a feed-forward whose output has the width of its input."""
    if not feed_forward:
        return []
    hidden = feed_forward[0].in_features
    found = [m for m in feed_forward if m.out_features == hidden and m.in_features != hidden]
    return found or [m for m in feed_forward if m.out_features == hidden][-1:]


def _named(names: tuple[str, ...], block: Block, label: str) -> list[Linear]:
    linears = adaptable(block)
    for name in names:
        if matching((name,), linears):
            continue
        if matching((name,), block.linears):
            raise PlanError(
                f"block {block.index}: {label} target '{name}' is a router or holds several experts in one tensor, "
                f"and neither can have an adapter, {_there(block)}"
            )
        raise PlanError(f"block {block.index}: {label} target '{name}' matches nothing, {_there(block)}")
    if not names:
        raise PlanError(f"block {block.index}: {label} targets: the list is empty, {_there(block)}")
    return matching(names, linears)


def adaptable(block: Block) -> list[Linear]:
    """The block's matrices that have a module of their own: not experts that share a tensor, nor their router."""
    experts = {linear.copies for linear in block.linears if linear.copies > 1}
    return [linear for linear in block.linears if linear.copies == 1 and linear.out_features not in experts]


def transposed(block: Block) -> bool:
    """Whether the block keeps its matrices as [in, out], like GPT-2."""
    shapes = {tensor.name: tensor.shape for tensor in block.tensors}
    return any(
        shapes.get(linear.weight) == (linear.in_features, linear.out_features)
        for linear in block.linears
        if linear.copies == 1 and linear.in_features != linear.out_features
    )


def matching(names: str | Sequence[str], linears: Sequence[Linear]) -> list[Linear]:
    """The matrices whose path is, or ends in, one of the names. A single string is a pattern for the whole path."""
    if isinstance(names, str):
        return [linear for linear in linears if re.fullmatch(names, linear.name)]
    return [linear for linear in linears if f".{linear.name}".endswith(tuple(f".{name}" for name in names))]


def _there(block: Block) -> str:
    within = [linear.name.removeprefix(f"{block.name}.") for linear in adaptable(block)]
    return f"the block has {', '.join(within) or 'no matrix that can have an adapter'}"
