"""Find a model's stacks of blocks: one stack, or an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
)

from frostline.anatomy._roles import has_matrix, is_attention
from frostline.core.errors import UnsupportedModel


@dataclass(frozen=True)
class Stack:
    """`module` turns token ids into the hidden states after the last of `blocks`."""

    kind: str
    module: nn.Module
    config: PreTrainedConfig
    blocks: tuple[nn.Module, ...]
    after_encoder: bool = False


def find_stacks(model: Any) -> tuple[Stack, ...]:
    """The stacks, in the order in which they run. Raises `UnsupportedModel` when the model has no usable one."""
    if model.config.is_encoder_decoder:
        encoder = _stack(model, "encoder", model.get_encoder())
        decoder = _stack(model, "decoder", model.get_decoder())
        return encoder, replace(decoder, after_encoder=True)
    return (_stack(model, _kind(model), model.base_model),)


def _kind(model: Any) -> str:
    config = type(model.config)
    reads_both_ways = config in MODEL_FOR_MASKED_LM_MAPPING or config in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return "encoder" if reads_both_ways and not getattr(model.config, "is_decoder", False) else "decoder"


def _stack(model: Any, kind: str, trunk: nn.Module) -> Stack:
    name = type(model).__name__
    config = getattr(trunk, "config", model.config)
    lists = list(_outermost_lists_of_blocks(trunk))
    depths = _declared_depths(config)
    if not lists:
        raise UnsupportedModel(
            f"{name} has no list of transformer blocks (modules with attention and other weights): use a text model "
            "that is built of such blocks"
        )
    if len(lists) > 1 or not depths:
        lengths = " and ".join(str(len(blocks)) for blocks in lists)
        raise UnsupportedModel(
            f"{name} is made of several models (it holds lists of {lengths} blocks): use a text model with one stack "
            "of blocks, or with one encoder and one decoder"
        )
    if len(lists[0]) not in depths:
        raise UnsupportedModel(
            f"{name} holds {len(lists[0])} block(s) for the {max(depths)} layers of its config, so layers share "
            "weights, and one cannot be frozen without the others: use a model whose blocks have weights of their own"
        )
    return Stack(kind, trunk, config, tuple(lists[0]))


def _outermost_lists_of_blocks(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and _holds_blocks(child):
            yield child
        else:
            yield from _outermost_lists_of_blocks(child)


def _holds_blocks(modules: nn.ModuleList) -> bool:
    """Whether every element has weight matrices, and at least one has attention inside."""
    return all(has_matrix(element) for element in modules) and any(
        is_attention(name.rpartition(".")[2], inner)
        for element in modules
        for name, inner in element.named_modules()
        if inner is not element
    )


def _declared_depths(config: PreTrainedConfig) -> set[int]:
    """The numbers of layers that a config has: `num_hidden_layers`, `n_layer`, `decoder_layers`, ..."""
    named = {key: value for key, value in config.to_dict().items() if "layer" in key}
    named["num_hidden_layers"] = getattr(config, "num_hidden_layers", None)
    return {value for value in named.values() if type(value) is int}
