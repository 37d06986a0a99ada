"""Peak memory of training on one device, by part, in bytes.

    weights       trained tensors in float32, and so is the rest of a block that has any; all others in the checkpoint's
                  type, or quantized. A matrix of which some rows train is there as a whole, and its trained rows again
    gradients     float32, of everything that trains. If each tensor is stepped in the backward pass: of the largest
                  tensor alone. If FLORA accumulates: of that tensor, and the compressed sums
    buckets       where processes train side by side (DDP): a second copy of the gradients, in which they are summed. It
                  is there from the first step to the last
    optimizer     what the optimizer keeps between steps (`_optimizer`)
    activations   what autograd keeps for the backward pass, copies of weights included (`_activations`)
    logits        of a loss over tokens: the log-probabilities, their gradient and the gradient of the logits, 4 bytes
                  each per logit; all three exist when the backward pass begins. Each further loss of a layered plan
                  keeps its log-probabilities
    read_ahead    boundary states from an activation cache: of the batch in use and of the next one
    gathered      what is put together while it is used (`_held`): units that FSDP shards, a quantized matrix

Under FSDP weights, gradients and optimizer are a device's share; the other parts belong to the device's own batch.

Weights and optimizer are in memory all the time. Activations are freed block by block while gradients arrive. So the
peak is the largest sum at any moment of the backward pass, not the sum of all parts. With accumulation, the gradients
of earlier batches are there too. With activation checkpointing a trained block keeps only its input, and one block at
a time has all of its activations again. A block below the boundary keeps nothing, but while it runs it needs two
tensors of the hidden width and two of the feed-forward width (three if gated), and the states that a residual
interaction adds later.

While training from an activation cache, the blocks below the boundary are not in memory, nor are embeddings that
nothing else reads. Where the head runs in chunks of label positions, the logits are those of one chunk. The head's
gradient is computed for each chunk, when only the gradient of the chunk's logits is left, and added to that of the
chunks before. The gradient of a tied embedding exists from the head on, and twice when the embedding adds its own
part. Where gradients of earlier batches are kept, or each tensor is stepped as its gradient comes, one tensor's
gradient is added.

Left out: the framework itself, the batch, buffers, what a single operation needs while it runs, and freed memory that
an allocator keeps. Compared with what torch's allocator holds at its peak, on the 16-block base16 under `all`, bot50,
LoRA and head, this is right to 0.2% (tests/cost/test_memory.py), and to 5% with activation checkpointing. Without its
bottom, from stored states, it is right to 0.2%; with loss positions to 0.5%; and where gradients decide the peak to
2%. Compared with the private memory of a new process it is 1-10% low when glibc returns freed memory (a fixed
M_MMAP_THRESHOLD). By default glibc keeps much of it, and the same runs need 25-65% more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from frostline.anatomy import Anatomy, Part, select
from frostline.cost._activations import SavedByPart, saved
from frostline.cost._bottom import read_ahead, replaced
from frostline.cost._flora import sum_numbers
from frostline.cost._flow import Flow, as_trained, flow
from frostline.cost._held import ABOVE, BELOW, Gathered, gathered, held, made_whole, on_a_device, place
from frostline.cost._loss_positions import chunked, head_positions, logit_positions
from frostline.cost._optimizer import optimizer_bytes
from frostline.cost._workload import FLOAT, Workload, state_bytes
from frostline.plan import Plan


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by part, each at its own largest, and the `peak` of them together."""

    weights: int
    gradients: int
    buckets: int
    optimizer: int
    activations: int
    logits: int
    read_ahead: int
    gathered: int
    peak: int


def memory(plan: Plan, anatomy: Anatomy, workload: Workload) -> Memory:
    """Peak memory of training under `plan`, of one device. Raises `PlanError` when the plan does not fit."""
    step = flow(plan, anatomy)
    # 1. What stays in memory from the first step to the last: weights and the optimizer's state.
    trained = _trained(plan, anatomy, step)
    tensors = held(plan, anatomy, step, workload)
    weights = on_a_device(tensors, workload)
    share = FLOAT * sum(trained.values()) / workload.devices
    buckets = round(share) if workload.processes > 1 else 0
    optimizer = round(optimizer_bytes(_shapes(plan, anatomy, step), workload) / workload.devices)
    # 2. What the forward pass leaves for the backward pass, and what checkpointing recomputes of it.
    kept = saved(step, workload)
    until, again = _checkpointed(step, kept, workload)
    activations = round(kept.embeddings.total + sum(until) + kept.head.total)
    largest = max(kept.logits)
    # `kept.logits` is what one loss keeps: its log-probabilities. When backward begins, the loss that is worked on has
    # two more tensors of that size: their gradient, and the gradient of the logits. Losses over chunks are worked on
    # one after another; layered losses have run all their forward passes before.
    logits = round(2 * largest + (largest if chunked(step, workload) else sum(kept.logits)))
    ahead = read_ahead(step, workload)
    whole = gathered(tensors, trained, step, workload)
    whole_matrix = round(made_whole(step, workload))
    # 3. Gradients, and the largest sum of all that comes and goes in a step.
    gradients = _gradients(plan, anatomy, step, trained, workload)
    summed = workload.flora is not None and workload.gradient_accumulation_steps > 1
    passing = workload.optimizer_in_backward or summed
    logits_moment = logits + _head_gradient(step, workload, logits)
    back = _largest_moment(activations, logits_moment, until, again, gradients, whole, step.bottom)
    return Memory(
        weights=weights,
        gradients=round(gradients.earlier + gradients.most if passing else share),
        buckets=buckets,
        optimizer=optimizer,
        activations=activations + round(max(again)),
        logits=logits,
        read_ahead=ahead,
        gathered=round(whole.most(step.bottom)) + whole_matrix,
        # The peak is in the forward pass of the frozen bottom, or in the backward pass above it.
        peak=sum((weights, buckets, optimizer, ahead, whole_matrix))
        + max(_passing(step, whole, gradients.earlier, workload), back),
    )


@dataclass(frozen=True)
class _Gradients:
    """Bytes of gradients on one device. A place is a block's number, ABOVE or BELOW the blocks.

    Attributes:
        earlier: what is there before the backward pass: gradients of earlier batches.
        arriving: what each place adds, and what stays until the optimizer steps.
        passing: what is there only while the backward pass is in a place.
    """

    earlier: float
    arriving: Mapping[int, float]
    passing: Mapping[int, float]

    @property
    def most(self) -> float:
        return sum(self.arriving.values()) + max(self.passing.values(), default=0.0)


def _gradients(plan: Plan, anatomy: Anatomy, step: Flow, trained: Mapping[int, int], workload: Workload) -> _Gradients:
    itself = as_trained(plan, anatomy)
    largest: dict[int, float] = defaultdict(float)
    tied = 0.0
    for item in select(plan, anatomy):
        where, size = place(item.tensor, itself), float(FLOAT * item.parameters)
        if where == ABOVE and item.tensor.part is Part.EMBEDDINGS:
            # A tied embedding: the head's part of its gradient comes first, and waits for the embeddings' part.
            where, tied = BELOW, size
        largest[where] = max(largest[where], size)
    for block in step.blocks:
        largest[block.index] = max([largest[block.index], *(float(FLOAT * prod(shape)) for shape in block.added)])
    shares = {where: FLOAT * count / workload.devices for where, count in trained.items()}
    if workload.optimizer_in_backward:
        # Each tensor is stepped as soon as its gradient is there, so that the largest one alone counts in each place.
        return _Gradients(0.0, {ABOVE: tied}, largest)
    if (
        workload.gradient_accumulation_steps > 1 and workload.devices == 1
    ):  # FSDP has them whole: among what is gathered
        saving = _compressed(plan, anatomy, step, workload)
        return _Gradients(sum(shares.values()) - saving, {ABOVE: tied}, largest)
    # All gradients arrive and stay; at the end both parts of a tied embedding's gradient exist for a moment.
    return _Gradients(0.0, shares, {BELOW: tied})


def _trained(plan: Plan, anatomy: Anatomy, step: Flow) -> Mapping[int, int]:
    """How many parameters train in each block, above the blocks, and below them."""
    numbers: dict[int, int] = defaultdict(int)
    itself = as_trained(plan, anatomy)
    for item in select(plan, anatomy):
        numbers[place(item.tensor, itself)] += item.parameters
    for block in step.blocks:
        numbers[block.index] += sum(map(prod, block.added))
    return numbers


def _compressed(plan: Plan, anatomy: Anatomy, step: Flow, workload: Workload) -> float:
    """Bytes that FLORA saves where it adds up compressed gradients."""
    options = workload.flora
    if options is None:
        return 0.0
    return FLOAT * sum(prod(shape) - sum_numbers(shape, options) for shape in _shapes(plan, anatomy, step))


def _shapes(plan: Plan, anatomy: Anatomy, step: Flow) -> Iterator[Sequence[int]]:
    """The shapes of what trains: of the model's own tensors, and of adapters'."""
    for item in select(plan, anatomy):
        yield (item.trained_rows, *item.tensor.shape[1:]) if item.tensor.shape else ()
    for block in step.blocks:
        yield from block.added


def _checkpointed(step: Flow, kept: SavedByPart, workload: Workload) -> tuple[list[float], list[float]]:
    """What each block keeps until its backward pass, and what it then has again, for a time, by recomputing.

    A checkpointed block keeps its input alone: [tokens, hidden]. A frozen block above the boundary is not checkpointed.
    """
    until, again = [], []
    for block, full in zip(step.blocks, kept.blocks, strict=True):
        recomputes = workload.activation_checkpointing and block.trains
        states = workload.step_tokens(block.stack, step.anatomy) * step.anatomy.hidden_size
        until.append(float(state_bytes(block.widened, workload) * states) if recomputes else full.total)
        again.append(full.total if recomputes else 0.0)
    return until, again


def _passing(step: Flow, whole: Gathered, gradients: float, workload: Workload) -> int:
    """What the blocks below the boundary need while they run (the largest of them), and `gradients` of earlier batches.

    Nothing is kept for a backward pass there. So a block needs its input and its output, the feed-forward's inner
    tensors before and after the activation function, and the gate's factor if there is one.
    """
    gone = replaced(step, workload)
    needs = [
        workload.step_tokens(block.stack, step.anatomy)
        * state_bytes(False, workload)
        * ((2 + step.kept_states) * step.anatomy.hidden_size + (2 + block.structure.gated) * block.structure.inner)
        + whole.forward(block.index)
        + gradients
        for block in step.blocks
        if not block.leaves and block.index not in gone
    ]
    return round(max(needs, default=0.0))


def _head_gradient(step: Flow, workload: Workload, logits: int) -> int:
    """What the gradient of the head's matrix adds to the `logits` of a chunk.

    It is made when two of the chunk's three tensors of logits are freed: it counts only as far as it is larger than
    these two. If there are several chunks, the sum over the chunks before is in memory as well.
    """
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
    gradients: _Gradients,
    whole: Gathered,
    lowest: int,
) -> int:
    """The most that activations, logits, gradients and gathered units take together, from the loss back to block
    `lowest` and the embeddings."""
    arriving, passing = gradients.arriving, gradients.passing
    # The loss: all activations and logits exist, no gradient of this batch yet.
    moments = [activations + logits + gradients.earlier + whole.loss]
    # The head's gradients are there, and the logits are freed.
    alive, there = float(activations), gradients.earlier + arriving.get(ABOVE, 0.0)
    moments.append(alive + there + passing.get(ABOVE, 0.0) + whole.loss)
    # Block by block: its gradients arrive while its activations still exist; then these are freed.
    for index in reversed(range(lowest, len(until))):
        there += arriving.get(index, 0.0)
        moments.append(alive + again[index] + there + passing.get(index, 0.0) + whole.backward(index))
        alive -= until[index]
    # The embeddings come last.
    there += arriving.get(BELOW, 0.0) + passing.get(BELOW, 0.0)
    moments.append(max(alive, 0.0) + there + whole.end(lowest))
    return round(max(moments))
