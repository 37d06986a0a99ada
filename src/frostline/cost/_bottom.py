"""Training from the activation cache: what leaves the model, and the states that replace it."""

from __future__ import annotations

from frostline.anatomy import Part, Tensor
from frostline.cost._flow import Flow
from frostline.cost._workload import BYTES, Workload

BATCHES_AHEAD = 2
"""Batches whose states are in memory: the one in use, and the one that is read meanwhile."""


def replaced(step: Flow, workload: Workload) -> frozenset[int]:
    """The blocks that do not run while training, since their outputs come from the activation cache."""
    if not workload.activation_cache:
        return frozenset()
    below = step.blocks[: step.bottom]
    stacks = [block.stack for block in below]
    kept = {stacks.index(block.stack) for block in below if block.structure.family.first_runs}
    return frozenset(range(step.bottom)) - kept


def embeddings_run(step: Flow, workload: Workload) -> bool:
    """Whether the embeddings run while training: they do not if every stack begins with stored states."""
    first = {block.stack: block.index for block in reversed(step.blocks)}
    return not workload.activation_cache or any(index >= step.bottom for index in first.values())


def resident(step: Flow, workload: Workload) -> tuple[Tensor, ...]:
    """The tensors that are in memory while training.

    Of embeddings that do not run any more, two kinds stay: a weight that the head shares, and tables of relative
    positions, which the blocks read.
    """
    anatomy, gone = step.anatomy, replaced(step, workload)
    embeds = embeddings_run(step, workload)
    in_head = {linear.weight for linear in anatomy.head_linears}

    def stays(tensor: Tensor) -> bool:
        if tensor.block is not None:
            return tensor.block not in gone
        if embeds or tensor.part is not Part.EMBEDDINGS or tensor.name in in_head:
            return True
        return any(piece.startswith("rel") for piece in tensor.name.split("."))

    return tuple(filter(stays, anatomy.tensors))


def row_state_bytes(step: Flow, workload: Workload) -> int:
    """Bytes of one row's boundary states in the activation cache: [tokens, hidden] for each stack with blocks below the
    boundary, in the type that these blocks compute in."""
    return _row_states(step, workload) * _stored_bytes(workload)


def bytes_on_disk(step: Flow, workload: Workload) -> int:
    """Bytes of the boundary states of all rows, each as long as a training row is on average."""
    return workload.rows * row_state_bytes(step, workload)


def read_ahead(step: Flow, workload: Workload) -> int:
    """Bytes of stored states in memory while training. Where autocast stores them in another type than that of the
    frozen blocks, those in use are there in both types."""
    if not workload.activation_cache:
        return 0
    stored, own = _stored_bytes(workload), BYTES[workload.frozen_dtype]
    each = BATCHES_AHEAD * stored + (own if own != stored else 0)
    return workload.per_device_train_batch_size * _row_states(step, workload) * each


def _row_states(step: Flow, workload: Workload) -> int:
    stacks = {block.stack for block in step.blocks[: step.bottom]}
    return sum(workload.row_tokens(stack, step.anatomy) for stack in stacks) * step.anatomy.hidden_size


def _stored_bytes(workload: Workload) -> int:
    return BYTES["bfloat16" if workload.bf16 else workload.frozen_dtype]
