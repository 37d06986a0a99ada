"""At how many positions of a batch a step computes: all of them, or those that the loss reads."""

from __future__ import annotations

from frostline.cost._flow import BlockFlow, Flow, HeadMatrix
from frostline.cost._workload import Workload

CHUNK_BYTES = 64 * 2**20
"""The most that one chunk of float32 logits takes."""


def block_positions(block: BlockFlow, step: Flow, workload: Workload) -> float:
    """Where a block computes its queries, what attention returns, and its feed-forward.

    The last one does so where the loss reads.
    """
    n = workload.step_tokens(block.stack, step.anatomy)
    last = block.index == step.blocks[-1].index
    if not (workload.loss_positions and step.has_positions and last and block.structure.family.splits):
        return n
    return workload.per_device_train_batch_size if step.classifies else n * workload.label_share


def head_positions(item: HeadMatrix, step: Flow, workload: Workload) -> float:
    """Where a matrix after the blocks multiplies."""
    if item.pooled:
        return workload.batch_texts
    n = workload.step_tokens("decoder", step.anatomy)
    return n * workload.label_share if chunked(step, workload) else n


def chunked(step: Flow, workload: Workload) -> bool:
    """Whether the head and the loss run in chunks of label positions; a classifier's head is small and does not."""
    return workload.loss_positions and step.has_positions and not step.classifies and bool(step.head)


def logit_positions(step: Flow, workload: Workload) -> float:
    """At how many positions logits are in memory at one time."""
    last = step.head[-1]
    positions = head_positions(last, step, workload)
    if not chunked(step, workload):
        return positions
    return min(positions, max(1, CHUNK_BYTES // (4 * last.matrix.linear.out_features)))
