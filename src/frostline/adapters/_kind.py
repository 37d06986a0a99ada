"""What an adapter kind says of itself. Each kind is one file; `_kinds` has a line for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Self, TypeVar

from peft import PeftConfig, PeftModel
from torch import nn

from frostline.adapters._added import Added, Branch, Shape
from frostline.adapters._layer import Part
from frostline.adapters._targets import matrices
from frostline.anatomy import Anatomy, Block, Linear
from frostline.plan import Adding, Targeted, Targets

M = TypeVar("M", bound=Adding)
T = TypeVar("T", bound=Targeted)

DEFAULT_NAME = "default"
"""What PEFT calls an adapter that was given no name."""


class LossTerm(NamedTuple):
    """What an adapter adds to the model's loss, in words: `what` it is, and how to `leave_out`."""

    what: str
    leave_out: str


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that PEFT's own code makes.

    Attributes:
        config: PEFT's.
        modules: those that it adapts, no more and no less; none are not checked.
        seeded: the name that its first values are drawn by.
        name: what PEFT calls it.
        finish: what is still to do when it is in the model.
    """

    config: PeftConfig
    modules: Sequence[str]
    seeded: str
    name: str = DEFAULT_NAME
    finish: Callable[[nn.Module, PeftModel], None] | None = None


class AdapterKind(Generic[M]):
    """One kind of adapter, with the options that a block's mode gives it.

    A kind says what it `added` to a block, and either which `parts` it puts around modules of the block, or, where
    PEFT has it already, which `peft_adapters` blocks of this kind make. The rest has defaults.
    """

    def __init__(self, mode: M) -> None:
        self.mode = mode

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        """What it adds to `block`, as sizes. Raises `UserError` when it does not fit the block."""
        raise NotImplementedError

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, Part]]:
        """The paths of modules, in the model without adapters, and the part that goes around each.

        Raises `UserError` when it does not fit the block, or `model`.
        """
        raise NotImplementedError

    @property
    def of_peft(self) -> bool:
        """Whether a plan has PEFT's own code make it."""
        return False

    @classmethod
    def peft_adapters(cls, members: Sequence[tuple[Self, Block]], anatomy: Anatomy) -> list[PeftAdapter]:
        """What PEFT makes for blocks of this kind that are `of_peft`. Raises `UserError` when one does not fit."""
        return []

    @classmethod
    def watch(cls, model: nn.Module) -> None:
        """Called when parts of this kind were put into `model`, once for each adapter."""

    @property
    def loss_term(self) -> LossTerm | None:
        """What it adds to the model's loss; None for nothing."""
        return None

    @property
    def why_not_hybrid(self) -> str | None:
        """Why `HybridConfig` cannot have it, and what to do; None where it can."""
        return None

    @property
    def why_not_scheduled(self) -> str | None:
        """Why a schedule that freezes blocks cannot have it; None where it can."""
        return None


class BesideMatrices(AdapterKind[T]):
    """A kind that puts one part around each matrix of a block that the mode's `targets` name."""

    def part(self, linear: Linear) -> Part:
        """What goes around a matrix."""
        raise NotImplementedError

    def branch(self, linear: Linear) -> Branch:
        """What it computes beside the matrix, as sizes."""
        raise NotImplementedError

    def shapes(self, linear: Linear) -> tuple[Shape, ...]:
        """Those of the part's parameters; a part that is no down and up projection says its own."""
        return self.branch(linear).shapes

    @property
    def targets(self) -> Targets | tuple[str, ...]:
        """Those of the mode; a kind may have a default of its own."""
        return self.mode.targets

    def linears(self, block: Block, anatomy: Anatomy) -> Sequence[Linear]:
        """The matrices. Raises `UserError` when the targets match nothing in the block."""
        return matrices(self.targets, block, anatomy.model_type, self.mode.label)

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        linears = self.linears(block, anatomy)
        shapes = tuple(shape for linear in linears for shape in self.shapes(linear))
        return Added(shapes, {linear.name: self.branch(linear) for linear in linears})

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, Part]]:
        return ((linear.name, self.part(linear)) for linear in self.linears(block, anatomy))
