"""What every mode of a block says of itself, so that nobody has to know which modes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from frostline.core.settings import Options
from frostline.plan._names import group_or_names

Targets = Literal["default", "attention", "feed_forward", "all", "qkv", "down", "outputs"]
TargetModules = Annotated[Targets | tuple[str, ...], group_or_names(Targets)]


class OwnTensors(NamedTuple):
    """Which of a block's own tensors train: those of a group or of modules, at `lr_scale`; of each matrix the share
    `rows` of its rows, drawn with `rows_seed`."""

    lr_scale: float
    train: str | tuple[str, ...] = "all"
    rows: float = 1.0
    rows_seed: int = 0

    @property
    def whole(self) -> bool:
        """Whether every tensor trains, in every row."""
        return self.train == "all" and self.rows == 1.0


class Mode(Options):
    """What training does to one block. By itself it leaves the block as it is."""

    @property
    def own(self) -> OwnTensors | None:
        """Which of the block's own tensors train; None when none does."""
        return None

    @property
    def adds(self) -> bool:
        """Whether the block gets parameters beside its own."""
        return False

    @property
    def structure(self) -> Mode | None:
        """What the block's modules are rebuilt for, whatever the learning rate; None when they stay as they are."""
        return None


class Adding(Mode):
    """A mode that adds parameters to a block and leaves the block's own tensors frozen.

    What it adds is an adapter kind in `frostline.adapters`.
    """

    if TYPE_CHECKING:  # each mode has it as its last field: a plan's text keeps the order of fields
        mode: str
        lr_scale: float

    @property
    def label(self) -> str:
        """What messages call it."""
        label: str = getattr(self, "kind", self.mode)
        return label

    @property
    def adds(self) -> bool:
        return True

    @property
    def structure(self) -> Mode:
        return self.model_copy(update={"lr_scale": 1.0})

    def beside(self, targets: Targets | tuple[str, ...]) -> Self | None:
        """The mode beside these matrices, unless it names others; None when it goes with whole blocks alone."""
        return None


class Targeted(Adding):
    """A mode that goes beside matrices of a block: those that `targets` names."""

    if TYPE_CHECKING:
        targets: TargetModules

    def beside(self, targets: Targets | tuple[str, ...]) -> Self:
        return self.model_copy(update={"targets": targets}) if self.targets == "default" else self
