"""The interface of a block's modes. Other code uses it, and does not ask which mode it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from frostline.core.settings import Options
from frostline.plan._names import group_or_names

Targets = Literal["default", "attention", "feed_forward", "all", "qkv", "down", "outputs"]
TargetModules = Annotated[Targets | tuple[str, ...], group_or_names(Targets)]


class OwnTensors(NamedTuple):
    """Which of a block's own tensors train, and how.

    Attributes:
        lr_scale: factor of the run's learning rate.
        train: a group of tensors, or names of modules.
        rows: the share of each matrix's rows that trains.
        rows_seed: draws these rows.
    """

    lr_scale: float
    train: str | tuple[str, ...] = "all"
    rows: float = 1.0
    rows_seed: int = 0

    @property
    def whole(self) -> bool:
        """Whether every tensor trains, in every row."""
        return self.train == "all" and self.rows == 1.0


class Mode(Options):
    """What training does to one block. This base class changes nothing."""

    @property
    def own(self) -> OwnTensors | None:
        """Which of the block's own tensors train; None when none of them does."""
        return None

    @property
    def adds(self) -> bool:
        """Whether the block gets new parameters beside its own."""
        return False

    @property
    def structure(self) -> Mode | None:
        """The mode without its learning rate, where the block's modules are rebuilt for it; else None."""
        return None


class Adding(Mode):
    """A mode that adds parameters to a block. The block's own tensors stay frozen.

    `frostline.adapters` has an adapter kind for each such mode.
    """

    if TYPE_CHECKING:  # each mode declares these itself, because a plan's text keeps the order of fields
        mode: str
        lr_scale: float

    @property
    def label(self) -> str:
        """Its name in messages."""
        label: str = getattr(self, "kind", self.mode)
        return label

    @property
    def adds(self) -> bool:
        return True

    @property
    def structure(self) -> Mode:
        return self.model_copy(update={"lr_scale": 1.0})

    def beside_block(self) -> Self:
        """The mode as a strategy's addition to a whole block."""
        return self

    def beside(self, targets: Targets | tuple[str, ...]) -> Self | None:
        """The mode on these matrices, unless it names others itself. None when it needs whole blocks."""
        return None


class Targeted(Adding):
    """A mode that goes beside matrices of a block. `targets` names them."""

    if TYPE_CHECKING:
        targets: TargetModules

    def beside(self, targets: Targets | tuple[str, ...]) -> Self:
        return self.model_copy(update={"targets": targets}) if self.targets == "default" else self
