"""The interface of an adapter kind. Each kind is one file, and `_kinds` has one line for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Self, TypeVar

from peft import PeftConfig, PeftModel
from torch import nn

from frostline.adapters._added import Added, Branch, Shape
from frostline.adapters._layer import AdapterPart
from frostline.adapters._targets import matrices
from frostline.anatomy import Anatomy, Block, Linear
from frostline.plan import Adding, Targeted, Targets

M = TypeVar("M", bound=Adding)
T = TypeVar("T", bound=Targeted)

DEFAULT_NAME = "default"
"""PEFT's name for an adapter that was given none."""


class LossTerm(NamedTuple):
    """What an adapter adds to the model's loss, for messages: `what` it is, and what to do to `leave_out` it."""

    what: str
    leave_out: str


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that PEFT's own code makes.

    Attributes:
        config: PEFT's config.
        modules: exactly the modules that it has to adapt; an empty list is not checked.
        seeded: a name from which, with the run's seed, its first values are drawn.
        name: PEFT's name of the adapter.
        finish: called with the model and the PEFT model when the adapter is in place.
    """

    config: PeftConfig
    modules: Sequence[str]
    seeded: str
    name: str = DEFAULT_NAME
    finish: Callable[[nn.Module, PeftModel], None] | None = None


class AdapterKind(Generic[M]):
    """One kind of adapter, with the options that a block's mode gives it.

    A kind defines `added`, the sizes of what it adds to a block. It also defines either `parts`, which go around
    modules of the block, or, where PEFT has the method already, `peft_adapters`. Everything else has a default.
    """

    def __init__(self, mode: M) -> None:
        self.mode = mode

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        """What it adds to `block`, as sizes. Raises `PlanError` or `UnsupportedModel` when it does not fit."""
        raise NotImplementedError

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, AdapterPart]]:
        """(Path, part) for each module that gets a part. Paths are those of the model without adapters.

        Raises `PlanError` or `UnsupportedModel` when it does not fit the block or the model.
        """
        raise NotImplementedError

    @property
    def of_peft(self) -> bool:
        """Whether PEFT's own code makes it when a plan is applied."""
        return False

    @classmethod
    def peft_adapters(cls, members: Sequence[tuple[Self, Block]], anatomy: Anatomy) -> list[PeftAdapter]:
        """What PEFT makes for blocks of this kind that are `of_peft`. Raises `PlanError` when one does not fit."""
        return []

    @classmethod
    def watch(cls, model: nn.Module) -> None:
        """Called once for each adapter, after parts of this kind were put into `model`."""

    @property
    def lora_scale(self) -> float | None:
        """The factor s where it adds s B A to each matrix, as any tool reads LoRA; None where it adds anything else."""
        return None

    @property
    def merges(self) -> bool:
        """Whether it can be written as a change of the model's weights."""
        return self.lora_scale is not None

    @property
    def loss_term(self) -> LossTerm | None:
        """What it adds to the model's loss; None when it adds nothing."""
        return None

    @property
    def why_not_hybrid(self) -> str | None:
        """Why `HybridConfig` cannot hold it, and what to do; None where it can."""
        return None

    @property
    def why_not_scheduled(self) -> str | None:
        """Why a schedule that freezes blocks cannot use it; None where it can."""
        return None


class BesideMatrices(AdapterKind[T]):
    """A kind that puts one part around each matrix of a block that the mode's `targets` name."""

    def part(self, linear: Linear) -> AdapterPart:
        """The part that goes around a matrix."""
        raise NotImplementedError

    def branch(self, linear: Linear) -> Branch:
        """What the part computes beside the matrix, as sizes."""
        raise NotImplementedError

    def shapes(self, linear: Linear) -> tuple[Shape, ...]:
        """Shapes of the part's parameters. Override it where they are not those of `branch`."""
        return self.branch(linear).shapes

    @property
    def targets(self) -> Targets | tuple[str, ...]:
        """The mode's targets. Override it in a kind with a default of its own."""
        return self.mode.targets

    def linears(self, block: Block, anatomy: Anatomy) -> Sequence[Linear]:
        """The matrices that `targets` names. Raises `PlanError` when it matches nothing in the block."""
        return matrices(self.targets, block, anatomy.model_type, self.mode.label)

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        linears = self.linears(block, anatomy)
        shapes = tuple(shape for linear in linears for shape in self.shapes(linear))
        return Added(shapes, {linear.name: self.branch(linear) for linear in linears})

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, AdapterPart]]:
        return ((linear.name, self.part(linear)) for linear in self.linears(block, anatomy))
