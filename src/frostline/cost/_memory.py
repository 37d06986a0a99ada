"""Peak memory of training on one device, by part, in bytes.

    weights       trained tensors in float32, and with them the whole of a block that has some; the others in
                  the checkpoint's type, or rounded; of a matrix that trains in part, the trained rows beside the whole
    gradients     float32, of everything that trains; of the largest tensor alone if each is stepped in backward; of
                  that tensor and the compressed sums if FLORA accumulates
    optimizer     AdamW: two float32 numbers for each trained one; SGD without momentum: none; FLORA: `_flora`
    activations   what autograd keeps until backward, copies of weights included (`_activations`)
    logits        of a loss over tokens: the log-probabilities, their gradient and the logits' gradient, 12
                  bytes per logit, alive together when backward begins; of each further reading of a layered
                  loss the log-probabilities
    read_ahead    boundary states from an activation cache: of the batch in use and of the next
    gathered      what is put together while it is used (`_held`): the units that FSDP shards, a rounded matrix

Under FSDP weights, gradients and optimizer are a device's share; the other parts are those of its own batch.

Weights and optimizer are there throughout. Activations are freed block by block while gradients arrive, so
the peak is the largest sum on the way back, not the sum of all; with accumulation the gradients of earlier
batches are there too. With checkpointing a trained block keeps its input alone, and one block at a time all
of its activations again. A block below the boundary keeps nothing, but while it runs it needs two tensors of
the hidden width and two of the feed-forward's (three if gated), and beside them the states that a residual
interaction adds later.

While training from an activation cache the blocks below the boundary, and embeddings that nothing else reads, are not
in memory. Where the head runs in chunks of label positions, logits are those of one chunk; its gradient is taken
with it, when of the logits theirs alone is left, and added to that of the chunks before. The gradient of a tied
embedding is there from the head on, and twice when the embedding adds its own. Where gradients of earlier batches are
kept, or each is stepped as it comes, one tensor's at a time comes on top.

Left out: the framework itself, the batch, buffers, what a single operation needs while it runs, and what an
allocator keeps of what was freed. Against what torch's allocator holds at its peak, on the 16-block base16 under
`all`, bot50, LoRA and head, this is right to 0.2% (tests/cost/test_memory.py), with checkpointing to 5%; without
its bottom, fed states, to 0.2% too, where only what the loss reads is computed to 0.5%, and where the gradients rule
the peak, all there or each stepped in backward, to 2%. Against the private memory of a fresh process it is 1-10% low
when glibc returns what is freed (a fixed M_MMAP_THRESHOLD); by default glibc keeps much of it, and the same runs take
25-65% more.
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
    optimizer: int
    activations: int
    logits: int
    read_ahead: int
    gathered: int
    peak: int


def memory(plan: Plan, anatomy: Anatomy, workload: Workload) -> Memory:
    """Peak memory of training under `plan`, of one device. Raises `UserError` when the plan does not fit."""
    step = flow(plan, anatomy)
    trained = _trained(plan, anatomy, step)
    tensors = held(plan, anatomy, step, workload)
    weights = on_a_device(tensors, workload)
    share = FLOAT * sum(trained.values()) / workload.devices
    optimizer = round(optimizer_bytes(_shapes(plan, anatomy, step), workload) / workload.devices)
    kept = saved(step, workload)
    until, again = _checkpointed(step, kept, workload)
    activations = round(kept.embeddings.total + sum(until) + kept.head.total)
    largest = max(kept.logits)
    logits = round(2 * largest + (largest if chunked(step, workload) else sum(kept.logits)))
    ahead = read_ahead(step, workload)
    whole = gathered(tensors, trained, step, workload)
    rounded = round(made_whole(step, workload))
    gradients = _gradients(plan, anatomy, step, trained, workload)
    summed = workload.flora is not None and workload.gradient_accumulation_steps > 1
    passing = workload.optimizer_in_backward or summed
    logits_moment = logits + _head_gradient(step, workload, logits)
    back = _largest_moment(activations, logits_moment, until, again, gradients, whole, step.bottom)
    return Memory(
        weights=weights,
        gradients=round(gradients.earlier + gradients.most if passing else share),
        optimizer=optimizer,
        activations=activations + round(max(again)),
        logits=logits,
        read_ahead=ahead,
        gathered=round(whole.most(step.bottom)) + rounded,
        peak=weights + optimizer + ahead + rounded + max(_passing(step, whole, gradients.earlier, workload), back),
    )


@dataclass(frozen=True)
class _Gradients:
    """Bytes of gradients that one device holds before the backward pass, that each place adds to them, and that are
    there while backward is in a place alone."""

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
        if where == ABOVE and item.tensor.part is Part.EMBEDDINGS:  # the head's share waits for the embeddings'
            where, tied = BELOW, size
        largest[where] = max(largest[where], size)
    for block in step.blocks:
        largest[block.index] = max([largest[block.index], *(float(FLOAT * prod(shape)) for shape in block.added)])
    shares = {where: FLOAT * count / workload.devices for where, count in trained.items()}
    if workload.optimizer_in_backward:
        return _Gradients(0.0, {ABOVE: tied}, largest)
    if (
        workload.gradient_accumulation_steps > 1 and workload.devices == 1
    ):  # FSDP has them whole: among what is gathered
        saving = _compressed(plan, anatomy, step, workload)
        return _Gradients(sum(shares.values()) - saving, {ABOVE: tied}, largest)
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
    """What each block keeps until its backward, and what it then computes again."""
    until, again = [], []
    for block, full in zip(step.blocks, kept.blocks, strict=True):
        recomputes = workload.activation_checkpointing and block.trains
        states = workload.step_tokens(block.stack, step.anatomy) * step.anatomy.hidden_size
        until.append(float(state_bytes(block.widened, workload) * states) if recomputes else full.total)
        again.append(full.total if recomputes else 0.0)
    return until, again


def _passing(step: Flow, whole: Gathered, gradients: float, workload: Workload) -> int:
    """What the blocks below the boundary need while they run, the largest of them, beside `gradients`."""
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
    gradients: _Gradients,
    whole: Gathered,
    lowest: int,
) -> int:
    """The most that activations, logits, gradients and gathered units take together, from the loss back to block
    `lowest` and the embeddings."""
    arriving, passing = gradients.arriving, gradients.passing
    moments = [activations + logits + gradients.earlier + whole.loss]
    alive, there = float(activations), gradients.earlier + arriving.get(ABOVE, 0.0)
    moments.append(alive + there + passing.get(ABOVE, 0.0) + whole.loss)
    for index in reversed(range(lowest, len(until))):
        there += arriving.get(index, 0.0)
        moments.append(alive + again[index] + there + passing.get(index, 0.0) + whole.backward(index))
        alive -= until[index]
    there += arriving.get(BELOW, 0.0) + passing.get(BELOW, 0.0)
    moments.append(max(alive, 0.0) + there + whole.end(lowest))
    return round(max(moments))
