"""Whether the weights that were read are the model's: none missing, none without a place in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from frostline.core.errors import UnsupportedModel

ONCE_STORED = (".inv_freq", ".masked_bias", ".position_ids")
"""How the names of buffers end that older checkpoints hold, and that transformers makes itself today."""


def check_whole(name: str, model: Any, found: Mapping[str, Any], own_class: str, wanted: Collection[str]) -> None:
    """Raise `UnsupportedModel` for tensors that the files of the model `name` lack, or hold without use.

    The tensors of a head may be missing if the checkpoint was saved without it, and those of another head unused.

    Args:
        name: of the model, for messages.
        model: what was loaded.
        found: what transformers says of the loading.
        own_class: the class that the checkpoint was saved from, by its config.
        wanted: the names of the parameters that are used.
    """
    body = set(_body(model))
    needed = {path for path in wanted if path in body or own_class == type(model).__name__}
    if missing := sorted(needed & set(found["missing_keys"])):
        raise UnsupportedModel(f"model '{name}': {_named(missing)} missing in its safetensors files: use a whole copy")
    if unused := sorted(_without_place(model, body, found["unexpected_keys"])):
        raise UnsupportedModel(
            f"model '{name}': {_named(unused)} in its safetensors files, but the model that config.json describes has "
            "no such tensor: correct config.json (such as its number of layers), or use the files of one model"
        )


def _named(names: list[str]) -> str:
    return f"tensor {names[0]} is" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} more are"


def _body(model: Any) -> Iterator[str]:
    """The parameters outside the heads. A pooler is part of a head."""
    inner = model.base_model
    inside = {id(parameter) for parameter in inner.parameters()}
    beside = model.named_children() if inner is model else ()  # where the heads lie beside the blocks
    heads = {name for name, module in beside if isinstance(module, nn.Linear)}
    for path, parameter in model.named_parameters():
        if id(parameter) in inside and path.split(".")[0] not in heads and "pooler" not in path.split("."):
            yield path


def _without_place(model: Any, body: Iterable[str], unexpected: Iterable[str]) -> Iterator[str]:
    """The tensors that lie in a module of the model's body, which has none of this name."""
    start = "" if model.base_model is model else f"{model.base_model_prefix}."
    made = {path for path, _ in model.named_buffers()}
    modules = {above for path in body for above in _above(path)} - {start.rstrip(".")}
    for path in unexpected:
        places = {path, start + path}  # a model that was saved without a head has no prefix
        if not places & made and not path.endswith(ONCE_STORED) and any(_above(place) & modules for place in places):
            yield path


def _above(path: str) -> set[str]:
    parts = path.split(".")[:-1]
    return {".".join(parts[: count + 1]) for count in range(len(parts))}
