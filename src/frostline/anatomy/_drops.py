"""Which blocks of a model a plan may leave out in one pass of its training (LayerDrop, AdapterDrop)."""

from __future__ import annotations

from frostline.anatomy._model import Anatomy, Block
from frostline.plan import Plan


def stacks(anatomy: Anatomy) -> list[list[Block]]:
    """The blocks, stack by stack."""
    kinds = dict.fromkeys(block.stack for block in anatomy.blocks)
    return [[block for block in anatomy.blocks if block.stack == kind] for kind in kinds]


def read_by_others(anatomy: Anatomy) -> list[int]:
    """The blocks that hold a tensor which other blocks read too (T5's position bias), and so have to run."""
    shared = [tensor.name for tensor in anatomy.embeddings]
    return [block.index for block in anatomy.blocks if any(name.startswith(f"{block.name}.") for name in shared)]


def skippable(plan: Plan, anatomy: Anatomy) -> list[list[int]]:
    """The blocks that `plan` may skip, for each stack: those that train, without those that others read."""
    if not plan.forward.layerdrop.acts:
        return [[] for _ in stacks(anatomy)]
    kept = read_by_others(anatomy)
    able = [i for i, mode in enumerate(plan.blocks) if mode.mode != "frozen" and i not in kept]
    return [[block.index for block in stack if block.index in able] for stack in stacks(anatomy)]


def adapted(plan: Plan) -> list[int]:
    """The blocks whose adapters `plan` may leave out, from the lowest up: those that have adapters."""
    return [i for i, mode in enumerate(plan.blocks) if mode.adds] if plan.forward.adapterdrop.acts else []
