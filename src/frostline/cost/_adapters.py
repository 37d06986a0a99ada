"""What the adapters of a block are, as sizes: their tensors, and what stands beside its matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from frostline.adapters import added_to, beside_attention, feed_forward, matrices, peft_modules
from frostline.anatomy import Anatomy, Block, Linear, attentions
from frostline.plan import BlockMode, Bottleneck, Lora, Mixture, Peft, Plan, Prefix

Shape = tuple[int, ...]

_KEEPS_BOTH = ("gelu", "silu")
"""Activation functions whose backward needs their input; the others' needs their output, which is kept anyway."""


@dataclass(frozen=True)
class Branch:
    """What is added to what a matrix gives: up(.. down(x) ..), with as many numbers in the middle as `makes`.

    x is what the matrix reads or, if `after`, what it gives; `reads` is its width, `out` that of the sum. `gated`: one
    more number is read off x. `kept`: how many numbers per token autograd keeps between down and up. `drops`: x passes
    a dropout on its way down. Of a mixture's `experts`, `rows` work on each token; so many rows pass the branch, and
    `matrix_rows` the matrix itself.
    """

    reads: int
    makes: float
    out: int
    kept: float
    gated: bool = False
    after: bool = False
    drops: bool = False
    biased: bool = False
    rows: int = 1
    matrix_rows: int = 1
    experts: int = 0

    @property
    def down(self) -> float:
        """The numbers of the matrices that multiply x."""
        return self.reads * (self.makes + self.gated)

    @property
    def up(self) -> float:
        return self.makes * self.out

    @property
    def shapes(self) -> tuple[Shape, ...]:
        gate: tuple[Shape, ...] = ((1, self.reads), (1,)) if self.gated else ()
        biases: tuple[Shape, ...] = ((round(self.makes),), (self.out,)) if self.biased else ()
        each = (self.experts,) if self.experts else ()
        makes = round(self.makes)
        return ((*each, makes, self.reads), (*each, self.out, makes), *gate, *biases)


def branches(plan: Plan, anatomy: Anatomy) -> dict[str, Branch]:
    """What the plan puts beside the matrices of the model, by their names.

    Raises `UserError` when a mode does not fit its block.
    """
    places = zip(plan.blocks, anatomy.blocks, strict=True)
    return {linear.name: branch for mode, block in places for linear, branch in _beside(mode, block, anatomy)}


def added_shapes(mode: BlockMode, block: Block, anatomy: Anatomy) -> tuple[Shape, ...]:
    """The shapes of the parameters that a mode adds to a block; those of PEFT's other methods as one vector."""
    if isinstance(mode, Prefix) and mode.length:
        gate: tuple[Shape, ...] = () if mode.gate == "none" else ((1, anatomy.hidden_size), (1,))
        attention = attentions(block)[0]
        return ((mode.length, attention.k), (mode.length, attention.v), *gate)
    if isinstance(mode, Peft):
        return ((added_to(mode, block, anatomy),),)
    router = ((mode.experts, anatomy.hidden_size),) if isinstance(mode, Mixture) else ()
    return (*router, *(shape for _, branch in _beside(mode, block, anatomy) for shape in branch.shapes))


def _beside(mode: BlockMode, block: Block, anatomy: Anatomy) -> Iterator[tuple[Linear, Branch]]:
    if isinstance(mode, Lora | Bottleneck):
        for linear in matrices(mode, block, anatomy.model_type):
            yield linear, _low_rank(mode, linear) if isinstance(mode, Lora) else _bottleneck(mode, linear)
    elif isinstance(mode, Mixture):
        for linear in feed_forward(block)[1]:
            yield linear, _experts(mode, linear, anatomy.hidden_size)
        if mode.attention:
            yield from _beside(beside_attention(mode), block, anatomy)
    elif isinstance(mode, Peft):
        adapted = peft_modules(mode, block, anatomy.model_type)
        targets = [linear for linear in block.linears if linear.name in adapted]
        rank = added_to(mode, block, anatomy) / max(1, sum(m.in_features + m.out_features for m in targets))
        for linear in targets:
            yield linear, Branch(linear.in_features, rank, linear.out_features, rank)


def _low_rank(mode: Lora, linear: Linear) -> Branch:
    # A gate multiplies the r numbers: it keeps them, itself, and their product.
    kept = 2 * mode.r + 1 if mode.gate else mode.r
    sizes = linear.in_features, mode.r, linear.out_features
    return Branch(*sizes, kept, gated=mode.gate, drops=mode.dropout > 0)


def _experts(mode: Mixture, linear: Linear, hidden: int) -> Branch:
    # What reads the block's hidden states runs once for all experts.
    rows = 1 if linear.in_features == hidden else mode.top_k
    sizes = linear.in_features, mode.r, linear.out_features
    drops = mode.dropout > 0
    return Branch(*sizes, mode.r, drops=drops, rows=mode.top_k, matrix_rows=rows, experts=mode.experts)


def _bottleneck(mode: Bottleneck, linear: Linear) -> Branch:
    after = mode.kind == "series"
    return Branch(
        reads=linear.out_features if after else linear.in_features,
        makes=mode.bottleneck,
        out=linear.out_features,
        kept=mode.bottleneck * (2 if mode.activation in _KEEPS_BOTH else 1),
        after=after,
        drops=mode.dropout > 0,
        biased=mode.bias,
    )
