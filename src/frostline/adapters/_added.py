"""What an adapter adds to a block, as sizes. Parameter counts and cost formulas need no more than this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from frostline.anatomy import Tensor
from frostline.plan import Prefix

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """A computation beside a matrix, whose result is added to the matrix's output: up(... down(x) ...).

    Attributes:
        reads: width of x, which is the matrix's input or, with `after`, its output.
        makes: how many numbers lie between down and up (the rank, or the bottleneck).
        out: width of the output.
        kept: how many numbers per token autograd keeps between down and up.
        gated: a gate computes one more number from x; with `after`, from another vector as wide.
        after: x is the matrix's output.
        drops: x passes a dropout before down.
        biased: down and up have biases.
        rows: how many rows pass the branch for each token; in a mixture, the experts per token.
        matrix_rows: how many rows pass the matrix itself for each token.
        experts: how many experts a mixture has, each with its own branch; 0 without a mixture.
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
        """How many numbers the matrices that multiply x hold."""
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


@dataclass(frozen=True)
class Added:
    """What an adapter adds to one block; nothing by default.

    Attributes:
        shapes: the shapes of its trainable parameters.
        branches: matrix name -> the branch beside it.
        prefix: the prefix before the keys and values of the block's first attention.
        copied: tensors of the block that it copies, in their dtype; the copies train.
    """

    shapes: tuple[Shape, ...] = ()
    branches: Mapping[str, Branch] = field(default_factory=dict)
    prefix: Prefix | None = None
    copied: tuple[Tensor, ...] = ()

    @property
    def parameters(self) -> int:
        """How many parameters train."""
        return sum(map(prod, self.shapes))
