"""Peak memory of training, by part, in bytes.

    weights       trained tensors in float32, and with them the whole of a block that has some; the others in
                  the checkpoint's type; of a matrix that trains in part, the trained rows beside the whole
    gradients     float32, of everything that trains
    optimizer     AdamW: two float32 numbers for each trained one; SGD without momentum: none
    activations   what autograd keeps until backward, copies of weights included (`_activations`)
    logits        of a loss over tokens: the log-probabilities, their gradient and the logits' gradient, 12
                  bytes per logit, alive together when backward begins
    read_ahead    boundary states from a cold store: of the batch in use and of the next

Weights and optimizer are there throughout. Activations are freed block by block while gradients arrive, so
the peak is the largest sum on the way back, not the sum of all; with accumulation the gradients of earlier
batches are there too. With checkpointing a trained block keeps its input alone, and one block at a time all
of its activations again. A block below the boundary keeps nothing, but while it runs it needs two tensors of
the hidden width and two of the feed-forward's (three if gated).

While training from a cold store the blocks below the boundary, and embeddings that nothing else reads, are not
in memory. Where the head runs in chunks of label positions, logits are those of one chunk; its gradient is taken
with it, when of the logits theirs alone is left, and added to that of the chunks before.

Left out: the framework itself, the batch, buffers, what a single operation needs while it runs, and what an
allocator keeps of what was freed. Against what torch's allocator holds at its peak, on the 16-block base16 under
`all`, bot50, LoRA and head, this is right to 0.2% (tests/cost/test_memory.py), with checkpointing to 5%; without
its bottom, fed states, to 0.2% too, and where only what the loss reads is computed to 0.5%. Against the private
memory of a fresh process it is 1-10% low when glibc returns what is freed (a fixed M_MMAP_THRESHOLD); by default
glibc keeps much of it, and the same runs take 25-65% more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from frostline.adapters import lora_parameters, lora_targets
from frostline.anatomy import Anatomy, Part, select
from frostline.cost._activations import FLOAT, SavedByPart, saved, weight_bytes
from frostline.cost._bottom import read_ahead, replaced, resident
from frostline.cost._flow import Flow, flow
from frostline.cost._reads import chunked, head_positions, logit_positions
from frostline.cost._workload import Optimizer, Workload
from frostline.plan import Plan

_STATE_TENSORS: Mapping[Optimizer, int] = {"adamw": 2, "sgd": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes by part, each at its own largest, and the `peak` of them together."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    read_ahead: int
    peak: int


def memory(plan: Plan, anatomy: Anatomy, workload: Workload) -> Memory:
    """Peak memory of training under `plan`. Raises `UserError` when the plan does not fit the anatomy."""
    step = flow(plan, anatomy)
    gradients = _gradients(plan, anatomy)
    total = sum(gradients.values())
    weights = _weights(plan, anatomy, step, workload)
    optimizer = _STATE_TENSORS[workload.optimizer] * total
    kept = saved(step, workload)
    until, again = _checkpointed(step, kept, workload)
    activations = round(kept.embeddings.total + sum(until) + kept.head.total)
    logits = round(3 * kept.logits)
    ahead = read_ahead(step, workload)
    return Memory(
        weights=weights,
        gradients=total,
        optimizer=optimizer,
        activations=activations + round(max(again)),
        logits=logits,
        read_ahead=ahead,
        peak=weights
        + optimizer
        + ahead
        + max(
            _passing(step, workload),
            _largest_moment(
                activations, logits + _head_gradient(step, workload, logits), until, again, gradients, workload
            ),
        ),
    )


_ABOVE, _BELOW = -1, -2


def _gradients(plan: Plan, anatomy: Anatomy) -> Mapping[int, int]:
    """Bytes of the gradients of each block, of what lies above the blocks, and of the embeddings below."""
    numbers: dict[int, int] = defaultdict(int)
    for item in select(plan, anatomy):
        outside = _BELOW if item.tensor.part is Part.EMBEDDINGS else _ABOVE
        numbers[outside if item.tensor.block is None else item.tensor.block] += item.parameters
    for target in lora_targets(plan, anatomy):
        numbers[target.linear.block or 0] += lora_parameters(target)
    return defaultdict(int, {place: FLOAT * count for place, count in numbers.items()})


def _weights(plan: Plan, anatomy: Anatomy, step: Flow, workload: Workload) -> int:
    trained = {item.tensor.name: item for item in select(plan, anatomy)}
    total = FLOAT * sum(map(lora_parameters, lora_targets(plan, anatomy)))
    for tensor in step.anatomy.tensors:
        item = trained.get(tensor.name)
        wide = item is not None or (tensor.block is not None and step.blocks[tensor.block].widened)
        if resident(tensor, step, workload):
            total += weight_bytes(wide, workload) * tensor.numel
        if item is not None and item.rows < 1:
            total += FLOAT * item.parameters
    return total


def _checkpointed(step: Flow, kept: SavedByPart, workload: Workload) -> tuple[list[float], list[float]]:
    """What each block keeps until its backward, and what it then computes again."""
    until, again = [], []
    for block, full in zip(step.blocks, kept.blocks, strict=True):
        recomputes = workload.checkpointing and block.trains
        states = workload.step_tokens(block.stack, step.anatomy) * step.anatomy.hidden_size
        until.append(float(weight_bytes(block.widened, workload) * states) if recomputes else full.total)
        again.append(full.total if recomputes else 0.0)
    return until, again


def _passing(step: Flow, workload: Workload) -> int:
    """What the blocks below the boundary need while they run, the largest of them."""
    gone = replaced(step, workload)
    needs = [
        workload.step_tokens(block.stack, step.anatomy)
        * weight_bytes(False, workload)
        * (2 * step.anatomy.hidden_size + (2 + block.structure.gated) * block.structure.inner)
        for block in step.blocks
        if not block.leaves and block.index not in gone
    ]
    return round(max(needs, default=0.0))


def _head_gradient(step: Flow, workload: Workload, logits: int) -> int:
    """What the head's gradient adds to the `logits` of a chunk."""
    if not chunked(step, workload):
        return 0
    trained = (item.matrix.linear for item in step.head if item.matrix.trained)
    own = FLOAT * sum(linear.in_features * linear.out_features for linear in trained)
    several = head_positions(step.head[-1], step, workload) > logit_positions(step, workload)
    return max(0, own - logits * 2 // 3) + own * several


def _largest_moment(
    activations: int,
    logits: int,
    until: list[float],
    again: list[float],
    gradients: Mapping[int, int],
    workload: Workload,
) -> int:
    """The most that activations, logits and gradients take together, from the loss back to the embeddings."""
    earlier = sum(gradients.values()) if workload.accumulation > 1 else 0
    moments = [activations + logits + earlier]
    alive, arrived = float(activations), gradients[_ABOVE]
    for index in reversed(range(len(until))):
        arrived += gradients[index]
        moments.append(round(alive + again[index]) + (earlier or arrived))
        alive -= until[index]
    moments.append(round(max(alive, 0.0)) + (earlier or sum(gradients.values())))
    return max(moments)
