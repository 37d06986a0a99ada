"""What an adapter adds to a block, as sizes: all that counts and costs know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from frostline.anatomy import Tensor
from frostline.plan import Prefix

Shape = tuple[int, ...]


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


@dataclass(frozen=True)
class Added:
    """What an adapter adds to one block; nothing by default.

    Attributes:
        shapes: those of its trainable parameters.
        branches: what it puts beside matrices of the block, by their names.
        prefix: what it puts before the keys and values of the block's first attention.
        copied: tensors of the block of which it trains copies, in their dtype.
    """

    shapes: tuple[Shape, ...] = ()
    branches: Mapping[str, Branch] = field(default_factory=dict)
    prefix: Prefix | None = None
    copied: tuple[Tensor, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        return sum(map(prod, self.shapes))
