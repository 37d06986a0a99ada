"""Models to test strategies on: real tiny models by name, and plain stacks of any number of blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from transformers import PreTrainedModel

from architectures import tiny
from frostline.anatomy import Anatomy, Block, Linear, Part, Role, Tensor, find_anatomy

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, untied": lambda: tiny("llama", tied=False),
    "llama, tied": lambda: tiny("llama", tied=True),
    "gpt2, tied": lambda: tiny("gpt2", tied=True),
    "phi, untied": lambda: tiny("phi", tied=False),
    "mixtral, untied": lambda: tiny("mixtral", tied=False),
    "qwen2 classifier": lambda: tiny("qwen2", "classification"),
    "bert classifier": lambda: tiny("bert"),
    "deberta classifier": lambda: tiny("deberta-v2"),
    "bert masked, tied": lambda: tiny("bert", "masked", tied=True),
    "t5, tied": lambda: tiny("t5"),
    "t5, untied": lambda: tiny("t5", tied=False),
}
CLASSIFIERS = [name for name in MODELS if "classifier" in name]
TIED = [name for name in MODELS if "untied" not in name and name not in CLASSIFIERS]


@cache
def anatomy(name: str) -> Anatomy:
    """The anatomy of one of `MODELS`."""
    return find_anatomy(MODELS[name]())


def plain(blocks: int, **changes: Any) -> Anatomy:
    """A decoder of `blocks` blocks, each of one matrix and its bias, made without a model."""
    head = Linear("head", "head.weight", 4, 9, Part.HEAD, None, None)
    values: dict[str, Any] = {
        "model_class": "Plain",
        "model_type": "plain",
        "hidden_size": 4,
        "vocab_size": 9,
        "num_heads": 1,
        "blocks": tuple(_block(index) for index in range(blocks)),
        "embeddings": (Tensor("tokens.weight", (9, 4), Part.EMBEDDINGS, None, None, False),),
        "final_norm": (Tensor("norm.weight", (4,), Part.FINAL_NORM, None, None, False),),
        "head": (Tensor("head.weight", (9, 4), Part.HEAD, None, None, False),),
        "embedding_linears": (),
        "head_linears": (head,),
        "tied": False,
        "encoder_decoder": False,
        "shifts_labels": True,
    }
    return Anatomy(**values | changes)


def _block(index: int) -> Block:
    name = f"blocks.{index}"

    def tensor(piece: str, shape: tuple[int, ...]) -> Tensor:
        return Tensor(f"{name}.matrix.{piece}", shape, Part.BLOCK, index, Role.ATTENTION, piece == "bias")

    linear = Linear(f"{name}.matrix", f"{name}.matrix.weight", 4, 4, Part.BLOCK, index, Role.ATTENTION)
    return Block(index, name, "decoder", (tensor("weight", (4, 4)), tensor("bias", (4,))), (linear,))
