"""Run a model whose blocks are not in memory: each is loaded before it runs and dropped afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.anatomy import Anatomy
from frostline.bottom import Load, drop_tensors, put_tensors


@contextmanager
def streamed(model: nn.Module, anatomy: Anatomy, load: Load) -> Iterator[None]:
    """Inside, `load` reads a block's tensors from disk while the block runs, where they are on the meta device.

    Tensors of the embeddings that are on the meta device stay in memory until the end.
    """
    away = {name for name, parameter in model.named_parameters() if parameter.is_meta}

    def bring(names: Iterable[str]) -> None:
        put_tensors(model, load([name for name in names if name in away]))

    def drop(names: Iterable[str]) -> None:
        drop_tensors(model, [name for name in names if name in away])

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
