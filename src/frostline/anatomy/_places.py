"""The place of every module of a model: embeddings, a block, the final norm or the head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from torch import nn
from transformers import PreTrainedModel

from frostline.anatomy._model import Part, Role
from frostline.anatomy._overrides import OVERRIDES
from frostline.anatomy._roles import is_norm, roles
from frostline.anatomy._stacks import Stack
from frostline.anatomy._trace import modules_before_blocks
from frostline.core.errors import UnsupportedModel


@dataclass(frozen=True)
class Place:
    part: Part
    block: int | None = None
    role: Role | None = None


def places(model: PreTrainedModel, stacks: Sequence[Stack]) -> dict[nn.Module, Place]:
    """The place of every module. Blocks are numbered through all stacks."""
    found = _around_blocks(model, stacks)
    serving_all = set(chain.from_iterable(map(_tables_for_all_blocks, stacks)))
    for index, block in enumerate(block for stack in stacks for block in stack.blocks):
        for module, role in roles(block).items():
            if module in serving_all:
                continue
            earlier = found[module].block
            if earlier is not None and list(module.parameters(recurse=False)):
                raise shared_weights(model, earlier, index)
            found[module] = Place(Part.BLOCK, index, role)
    return found


def shared_weights(model: nn.Module, one: int, other: int) -> UnsupportedModel:
    """The error for two blocks that share weights."""
    return UnsupportedModel(
        f"blocks {one} and {other} of {type(model).__name__} share weights, so one cannot be frozen without the other: "
        "use a model whose blocks have weights of their own"
    )


def _around_blocks(model: PreTrainedModel, stacks: Sequence[Stack]) -> dict[nn.Module, Place]:
    before = set(chain.from_iterable(map(modules_before_blocks, stacks)))
    trunk = set(model.base_model.modules())

    def part(module: nn.Module) -> Part:
        if isinstance(module, nn.Embedding) or module in before:
            return Part.EMBEDDINGS
        return Part.FINAL_NORM if is_norm(module) and module in trunk else Part.HEAD

    found = {module: Place(part(module)) for module in model.modules()}
    exceptions = OVERRIDES.get(model.config.model_type, {})
    for path, module in model.base_model.named_modules():
        if path in exceptions:
            found |= dict.fromkeys(module.modules(), Place(exceptions[path]))
    return found


def _tables_for_all_blocks(stack: Stack) -> list[nn.Module]:
    """Embedding tables in one block that all blocks read (T5's relative positions). The other blocks have none."""
    tables = [
        (path, module)
        for block in stack.blocks
        for path, module in block.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    owners = Counter(path for path, _ in tables)
    return [module for path, module in tables if owners[path] < len(stack.blocks)]
