"""Find the anatomy of a transformers text model by its structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from frostline.anatomy._matrices import matrices
from frostline.anatomy._model import Anatomy, Block, Linear, Part, Tensor
from frostline.anatomy._places import Place, places, shared_weights
from frostline.anatomy._shifts import shifts_labels
from frostline.anatomy._stacks import Stack, find_stacks
from frostline.core.errors import UnsupportedModel
from frostline.hooks import any_sharded


def find_anatomy(model: nn.Module, *, adapted: bool = False) -> Anatomy:
    """Where `model` keeps its embeddings, ordered blocks, final norm and head.

    Embeddings are the embedding tables and everything else that runs before the first block. The final norm is every
    later norm of the trunk (`model.base_model`) outside the blocks. The head is the rest. Weights may be on any device,
    also on the meta device; they are neither read nor changed.

    Args:
        model: a transformers model.
        adapted: accept PEFT adapters, whose tensors then count to the block that they are in.

    Raises `UnsupportedModel` when `model` is not a transformers text model of attention blocks, when its blocks share
    weights, when one of them has no values, or when it already has PEFT adapters.
    """
    text = _checked(model, adapted)
    stacks = find_stacks(text)
    where = places(text, stacks)
    tensors = list(_tensors(text, where))
    linears = list(_linears(text, where))
    config = text.config.get_text_config()
    embedding, output = text.get_input_embeddings(), text.get_output_embeddings()
    return Anatomy(
        model_class=type(text).__name__,
        model_type=text.config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=embedding.num_embeddings,
        num_heads=getattr(config, "num_attention_heads", 1),
        blocks=_blocks(text, stacks, tensors, linears),
        embeddings=tuple(tensor for tensor in tensors if tensor.part is Part.EMBEDDINGS),
        final_norm=tuple(tensor for tensor in tensors if tensor.part is Part.FINAL_NORM),
        head=tuple(tensor for tensor in tensors if tensor.part is Part.HEAD),
        embedding_linears=tuple(linear for linear in linears if linear.part is Part.EMBEDDINGS),
        head_linears=tuple(linear for linear in linears if linear.part is Part.HEAD),
        tied=output is not None and output.weight is embedding.weight,
        encoder_decoder=len(stacks) == 2,
        shifts_labels=shifts_labels(text, stacks),
    )


def get_block(model: nn.Module, anatomy: Anatomy, index: int) -> nn.Module:
    """The module of block `index`."""
    return model.get_submodule(anatomy.blocks[index].name)


def text_model(model: nn.Module) -> nn.Module:
    """The transformers model in `model`: itself, or the only one inside (a PEFT model, a sentence-transformer).

    Where there is none or more than one, `model` itself.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found[0] if len(found) == 1 else model


def _checked(model: nn.Module, adapted: bool) -> Any:
    name = type(model).__name__
    if not adapted and any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise UnsupportedModel(
            f"{name} already has PEFT adapters: train it as it is, without a plan, or use the model without them"
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(f"{name} is not a transformers model: use a text model that transformers loads")
    if any_sharded(model.parameters()):
        raise UnsupportedModel(
            f"{name}: its weights were divided among processes when it was loaded (tensor parallelism, tp_plan, "
            "distributed_config): load it whole, and use fsdp in the training arguments"
        )
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise UnsupportedModel(f"{name} has no token embedding: use a text model")
    return model


def _tensors(model: nn.Module, where: dict[nn.Module, Place]) -> Iterator[Tensor]:
    holders: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[parameter].append(module)
    for name, parameter in model.named_parameters():
        if 0 in parameter.shape:
            raise UnsupportedModel(f"{name} has the shape {tuple(parameter.shape)}: use sizes from 1 on in config.json")
        place = _common_place(model, [where[holder] for holder in holders[parameter]])
        table = any(isinstance(holder, nn.Embedding) for holder in holders[parameter])
        is_bias = "bias" in name.rpartition(".")[2] and not table
        yield Tensor(name, tuple(parameter.shape), place.part, place.block, place.role, is_bias)


def _common_place(model: nn.Module, candidates: list[Place]) -> Place:
    """The place of a tensor that several modules hold. A tied tensor belongs to the embeddings."""
    for place in candidates:
        if place.part is Part.EMBEDDINGS:
            return place
    blocks = [place.block for place in candidates if place.block is not None]
    if len(set(blocks)) > 1:
        raise shared_weights(model, min(blocks), max(blocks))
    return candidates[0]


def _linears(model: nn.Module, where: dict[nn.Module, Place]) -> Iterator[Linear]:
    names: dict[object, str] = {parameter: name for name, parameter in model.named_parameters()}
    for matrix in matrices(model):
        place = where[matrix.holder]
        yield Linear(
            name=matrix.name,
            weight=names[matrix.weight],
            in_features=matrix.in_features,
            out_features=matrix.out_features,
            part=place.part,
            block=place.block,
            role=place.role,
            active=matrix.active,
            copies=matrix.copies,
        )


def _blocks(
    model: nn.Module, stacks: tuple[Stack, ...], tensors: list[Tensor], linears: list[Linear]
) -> tuple[Block, ...]:
    paths = {module: path for path, module in model.named_modules()}
    kinds = [(block, stack.kind) for stack in stacks for block in stack.blocks]
    return tuple(
        Block(
            index=index,
            name=paths[block],
            stack=kind,
            tensors=tuple(tensor for tensor in tensors if tensor.block == index),
            linears=tuple(linear for linear in linears if linear.block == index),
        )
        for index, (block, kind) in enumerate(kinds)
    )
