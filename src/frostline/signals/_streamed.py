"""Run a model whose blocks are not in memory: each comes when the forward pass reaches it, and goes after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from frostline.anatomy import Anatomy
from frostline.bottom import Load


@contextmanager
def streamed(model: nn.Module, anatomy: Anatomy, load: Load) -> Iterator[None]:
    """Inside, tensors of blocks that lie on the meta device are read by `load` for as long as their block runs.

    Those of the embeddings that lie there are in memory until the end.
    """
    device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
    away = {name for name, parameter in model.named_parameters() if parameter.is_meta}

    def bring(names: Iterable[str]) -> None:
        _assign(model, {name: tensor.to(device) for name, tensor in load([n for n in names if n in away]).items()})

    def drop(names: Iterable[str]) -> None:
        parameters = {name: model.get_parameter(name) for name in names if name in away}
        _assign(model, {name: torch.empty_like(held, device="meta") for name, held in parameters.items()})

    handles = []
    for block in anatomy.blocks:
        names = [tensor.name for tensor in block.tensors]
        module = model.get_submodule(block.name)
        handles.append(module.register_forward_pre_hook(_call(bring, names)))
        handles.append(module.register_forward_hook(_call(drop, names)))
    embeddings = [tensor.name for tensor in anatomy.embeddings]
    bring(embeddings)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        drop(away)


def _call(function: Any, names: list[str]) -> Any:
    return lambda *_: function(names)


def _assign(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(tensors, strict=False, assign=True)
