"""The weights that a device holds: their type, quantized or not, as a whole or a share; and what it puts together.

On N devices FSDP shards every parameter: each device holds 1/N of it, and gathers a unit when the unit runs. A unit is
a block; the root is what is outside the blocks. In addition to its share a device then has

    forward      the root's weights throughout; of the block that is gathered a copy beside them, and that of the unit
                 before it
    backward     the weights of the block that runs, and of the next one, which is fetched meanwhile; the gradients of
                 that block, and of the one before on their way to the other devices; the root's gradients from where
                 they arise to the end
    accumulated  with several batches to a step, the gradients of all blocks from the first batch on

in the type that is computed in: bfloat16 under autocast, else the type held. A buffer is whole on each device; a matrix
of which some rows train is one, and so is a quantized matrix. What the activation cache replaces is never shared: an
embedding that the head reads too stays whole, and is not gathered.

A quantized matrix [out, in] needs, in 8 bits, a byte per number and 4 per row; in 4 bits half a byte per number, a
byte for each 64 of them, 4 for each 256 of those, and its tables. While it multiplies it is made whole, twice in 8
bits, and once more under autocast from float32.

Left out: the shards' padding, and the memory of the collective operations themselves. Against torch's fully_shard
with collectives that move nothing (2 and 8 devices, a Llama of 8 blocks; `all`, bot50, LoRA and head; with
checkpointing, autocast and accumulation) the peak is right to 1% where activations decide it, and up to 9% too high
where units do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from frostline.anatomy import Anatomy, Linear, Part, Tensor, select
from frostline.cost._bottom import resident
from frostline.cost._flow import BlockFlow, Flow
from frostline.cost._workload import FLOAT, Workload, weight_bytes
from frostline.plan import Plan

ABOVE, BELOW = -1, -2
"""The places outside the blocks; a block's place is its number."""

_TABLES = 1256
"""Bytes of the two code books of a matrix in 4 bits, and of their description."""


@dataclass(frozen=True)
class Held:
    """One tensor in memory while training. `nbytes` is all of it; `sharded` if devices share it."""

    place: int
    numbers: int
    nbytes: float
    sharded: bool = True


@dataclass(frozen=True)
class Gathered:
    """Bytes that are on a device beside its share: 0 everywhere on a single one.

    `throughout`: of the `root`'s weights, and of the gradients of earlier batches. `weights` of each block;
    `gradients` of each place, before they are shared out.
    """

    throughout: float
    root: float
    weights: Sequence[float]
    gradients: Mapping[int, float]

    def forward(self, block: int) -> float:
        """While a block is gathered in the forward pass."""
        before = self.weights[block - 1] if block else self.root
        return self.throughout + before + 2 * self.weights[block]

    @property
    def loss(self) -> float:
        """Between forward and backward pass."""
        return self.throughout + self.weights[-1]

    def backward(self, block: int) -> float:
        """While a block runs backward."""
        return (
            self.throughout
            + sum(self.weights[max(0, block - 1) : block + 1])
            + sum(self.gradients.get(place, 0.0) for place in (ABOVE, block, block + 1))
        )

    def end(self, lowest: int) -> float:
        """When the embeddings have their gradient, and that of the lowest block to have one is on its way."""
        return self.throughout + sum(self.gradients.get(place, 0.0) for place in (ABOVE, BELOW, lowest))

    def most(self, lowest: int) -> float:
        """In a step whose backward pass goes down to block `lowest`."""
        blocks = range(len(self.weights))
        return max(*map(self.forward, blocks), *map(self.backward, blocks[lowest:]), self.end(lowest))


def held(plan: Plan, anatomy: Anatomy, step: Flow, workload: Workload) -> list[Held]:
    """Every tensor in memory while `plan` trains: the model's own, of rows that train a copy, adapters'."""
    return [*_own(plan, anatomy, step, workload), *_adapters(step)]


def on_a_device(tensors: Sequence[Held], workload: Workload) -> int:
    """Bytes that one device holds of them."""
    return round(own_share(tensors, workload) + sum(item.nbytes for item in tensors if not item.sharded))


def own_share(tensors: Sequence[Held], workload: Workload) -> float:
    """Bytes of a device's part of those that devices share."""
    return sum(item.nbytes for item in tensors if item.sharded) / workload.devices


def gathered(tensors: Sequence[Held], trained: Mapping[int, int], step: Flow, workload: Workload) -> Gathered:
    """What a device puts together, where so many parameters of each place are `trained`."""
    root, weights = 0.0, [0.0] * len(step.blocks)
    if workload.devices == 1:
        return Gathered(0.0, root, weights, {})
    for item in tensors:
        whole = (2.0 * item.numbers if workload.bf16 else item.nbytes) if item.sharded else 0.0
        if item.place in (ABOVE, BELOW):
            root += whole
        else:
            weights[item.place] += whole
    number = 2.0 if workload.bf16 else FLOAT
    gradients = {where: number * count for where, count in trained.items()}
    if workload.gradient_accumulation_steps > 1:
        return Gathered(root + sum(gradients.values()), root, weights, {})
    return Gathered(root, root, weights, gradients)


def of_the_bottom(tensor: Tensor, step: Flow, workload: Workload) -> bool:
    """Whether stored states stand for what reads this tensor. What is in memory of it is whole on each device."""
    if not workload.activation_cache:
        return False
    stacks = {block.stack for block in step.blocks[: step.bottom]}
    if tensor.block is not None:
        return tensor.block < step.bottom
    return tensor.part is Part.EMBEDDINGS or (tensor.part is Part.FINAL_NORM and len(stacks) > 1)


def made_whole(step: Flow, workload: Workload) -> float:
    """Bytes of the largest quantized matrix while it multiplies."""
    needs = [0.0]
    for block in step.blocks:
        own = weight_bytes(block.widened, workload)
        number = own * (2 if workload.frozen_bits == 8 else 1) + 2 * (workload.bf16 and own != 2)
        needs += [float(number * size) for size in map(_numbers, _quantized(block, workload))]
    return max(needs)


def place(tensor: Tensor, anatomy: Anatomy) -> int:
    """Where the backward pass first has a gradient of a tensor; for a tied embedding that is the head."""
    if tensor.block is not None:
        return tensor.block
    in_head = any(linear.weight == tensor.name for linear in anatomy.head_linears)
    return BELOW if tensor.part is Part.EMBEDDINGS and not in_head else ABOVE


def _own(plan: Plan, anatomy: Anatomy, step: Flow, workload: Workload) -> Iterator[Held]:
    trained = {item.tensor.name: item for item in select(plan, anatomy)}
    quantized = {linear.weight: linear for block in step.blocks for linear in _quantized(block, workload)}
    for tensor in resident(step, workload):
        item, where = trained.get(tensor.name), place(tensor, step.anatomy)
        if tensor.name in quantized:
            yield Held(where, tensor.numel, _quantized_bytes(quantized[tensor.name], workload), sharded=False)
            continue
        widened = tensor.block is not None and step.blocks[tensor.block].widened
        number = weight_bytes(item is not None or widened, workload)
        partly = item is not None and item.rows < 1
        apart = partly or of_the_bottom(tensor, step, workload)
        yield Held(where, tensor.numel, number * tensor.numel, sharded=not apart)
        if item is not None and partly:
            yield Held(where, item.parameters, FLOAT * item.parameters)


def _adapters(step: Flow) -> Iterator[Held]:
    for block in step.blocks:
        for shape in block.added:
            yield Held(block.index, prod(shape), FLOAT * prod(shape))


def _quantized(block: BlockFlow, workload: Workload) -> list[Linear]:
    return [matrix.linear for matrix in block.matrices if matrix.roundable] if workload.frozen_bits else []


def _numbers(linear: Linear) -> int:
    return linear.in_features * linear.out_features


def _quantized_bytes(linear: Linear, workload: Workload) -> float:
    numbers = _numbers(linear)
    if workload.frozen_bits == 8:
        return numbers + FLOAT * linear.out_features
    return numbers * (1 / 2 + 1 / 64 + FLOAT / (64 * 256)) + _TABLES
