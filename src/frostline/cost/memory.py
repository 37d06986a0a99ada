"""Peak memory of training, by part, in bytes.

    weights       trained tensors in float32, frozen ones in the checkpoint's type
    gradients     float32, of every trained tensor (of a matrix that trains in part, the whole)
    optimizer     AdamW: two float32 numbers for each trained one; SGD without momentum: none
    activations   what autograd keeps until backward (`activations`), weights cast by autocast included
    logits        of a loss over tokens: the log-probabilities, their gradient and the logits' gradient, 12
                  bytes per logit, alive together when backward begins

Weights and optimizer are there throughout. Activations are freed block by block while gradients arrive, so
the peak is the largest sum on the way back, not the sum of all. With checkpointing a trained block keeps
only its input, and one block at a time all of its activations again.

Left out: the framework itself, the batch, buffers, what a single operation needs while it runs, and what an
allocator holds but does not use.
"""

from __future__ import annotations

from dataclasses import dataclass

from frostline.adapters import lora_parameters, lora_targets
from frostline.anatomy import Anatomy, Part
from frostline.anatomy.selection import select
from frostline.cost.activations import SavedByPart, saved
from frostline.cost.flow import Flow, flow
from frostline.cost.workload import BYTES, Optimizer, Workload
from frostline.plan import Plan

_FLOAT = 4
_STATE_TENSORS: dict[Optimizer, int] = {"adamw": 2, "sgd": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes by part, each at its own largest, and the `peak` of them together."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int


def memory(plan: Plan, anatomy: Anatomy, workload: Workload) -> Memory:
    """Peak memory of training under `plan`. Raises `UserError` when the plan does not fit the anatomy."""
    step = flow(plan, anatomy)
    trained = _trained_by_part(plan, step)
    total = sum(trained.values())
    own = total - _lora(plan, anatomy)
    weights = _FLOAT * total + BYTES[workload.frozen_dtype] * (step.anatomy.total_parameters - own)
    optimizer = _FLOAT * _STATE_TENSORS[workload.optimizer] * total
    kept = saved(step, workload)
    blocks, again = _checkpointed(step, kept, workload)
    activations = kept.embeddings.total + sum(blocks) + kept.head.total
    logits = 3 * kept.logits
    moments = [activations + logits]
    alive, arrived = activations - kept.head.total, _FLOAT * trained[None]
    for index in reversed(range(len(blocks))):
        moments.append(alive + arrived + again[index])
        arrived += _FLOAT * trained[index]
        alive -= blocks[index]
    moments.append(_FLOAT * total)
    return Memory(
        weights=weights,
        gradients=_FLOAT * total,
        optimizer=optimizer,
        activations=round(activations + max(again)),
        logits=round(logits),
        peak=weights + optimizer + round(max(moments)),
    )


def _trained_by_part(plan: Plan, step: Flow) -> dict[int | None, int]:
    """Numbers in the trained tensors of each block, and under None of what comes after them; those of the
    embeddings, whose gradient comes last, are in block -1."""
    numbers: dict[int | None, int] = {None: 0, -1: 0} | {block.index: 0 for block in step.blocks}
    for item in select(plan, step.anatomy):
        first = item.tensor.part is Part.EMBEDDINGS
        numbers[-1 if first else item.tensor.block] += item.tensor.numel
    for target in lora_targets(plan, step.anatomy):
        numbers[target.linear.block] += lora_parameters(target)
    return numbers


def _lora(plan: Plan, anatomy: Anatomy) -> int:
    return sum(map(lora_parameters, lora_targets(plan, anatomy)))


def _checkpointed(step: Flow, kept: SavedByPart, workload: Workload) -> tuple[list[float], list[float]]:
    """What each block keeps until its backward, and what it then computes again."""
    until, again = [], []
    for block, full in zip(step.blocks, kept.blocks, strict=True):
        recomputes = workload.checkpointing and block.trains
        tokens = workload.batch * workload.tokens_per_row(block.stack, step.anatomy.encoder_decoder)
        until.append(float(_FLOAT * tokens * step.anatomy.hidden_size) if recomputes else full.total)
        again.append(full.total if recomputes else 0.0)
    return until, again
