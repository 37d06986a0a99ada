"""Where the parts of a plan's blocks go, and what they are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

from torch import nn

from frostline.adapters._bottleneck import BottleneckPart
from frostline.adapters._layer import Part, submodule
from frostline.adapters._low_rank import LowRank
from frostline.adapters._mixture import ExpertsPart, MixturePart, beside_attention, feed_forward
from frostline.adapters._prefix import PrefixPart, check_attention
from frostline.adapters._targets import matrices, prefix_widths
from frostline.anatomy import Anatomy, Block
from frostline.core.errors import UserError
from frostline.hooks import hookable
from frostline.plan import BlockMode, Bottleneck, Lora, Mixture, Prefix


def places(model: nn.Module, modes: Sequence[BlockMode], anatomy: Anatomy) -> Iterator[tuple[str, Part]]:
    """The module's path within `model` and the part around it, for everything that `modes` add, in the model's order.

    Paths are those of the model before adapters. Raises `UserError` when a mode does not fit its block.
    """
    for mode, block in zip(modes, anatomy.blocks, strict=True):
        if isinstance(mode, Lora | Bottleneck):
            for linear in matrices(mode, block, anatomy.model_type):
                sizes = linear.in_features, linear.out_features
                yield linear.name, LowRank(*sizes, mode) if isinstance(mode, Lora) else BottleneckPart(*sizes, mode)
        elif isinstance(mode, Prefix) and mode.length:
            yield _attention(model, block), PrefixPart(*prefix_widths(block), anatomy.hidden_size, mode)
        elif isinstance(mode, Mixture):
            yield from _mixture(model, mode, block, anatomy)


def _mixture(model: nn.Module, mode: Mixture, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, Part]]:
    """Plain LoRA on the attention's matrices, the router around the feed-forward, the experts around its matrices."""
    if mode.attention:
        lora = beside_attention(mode)
        for linear in matrices(lora, block, anatomy.model_type):
            yield linear.name, LowRank(linear.in_features, linear.out_features, lora)
    path, linears = feed_forward(block)
    parameters = inspect.signature(submodule(model, path).forward).parameters.values()
    if sum(parameter.default is parameter.empty for parameter in parameters) > 1:
        raise UserError(
            f"block {block.index}: mixture: {path} reads more than hidden states, and cannot run on some tokens alone: "
            "take lora or an adapter"
        )
    of_decoder = anatomy.encoder_decoder and block.stack == "decoder"
    yield path, MixturePart(anatomy.hidden_size, mode, "decoder_attention_mask" if of_decoder else "attention_mask")
    for linear in linears:
        yield linear.name, ExpertsPart(linear.in_features, linear.out_features, mode)


def _without_adapters(path: str) -> str:
    return ".".join(step for step in path.split(".") if step != "base_layer")


def _attention(model: nn.Module, block: Block) -> str:
    """The path of the block's self-attention. Raises `UserError` when a prefix cannot be put into it."""
    for name, module in model.named_modules():
        path = _without_adapters(name)
        if path.startswith(f"{block.name}.") and hookable(module):
            check_attention(module)
            return path
    raise UserError(
        f"block {block.index}: prefix: the attention of {type(model).__name__} is not one of transformers' registered "
        "functions, which a prefix needs: take lora or an adapter"
    )
