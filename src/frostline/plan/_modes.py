"""What training does to one block: the modes and their options, as pure data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from frostline.plan._mode import Mode, OwnTensors
from frostline.plan._names import group_or_names
from frostline.plan.adapters import AddingMode

PartialParts = Literal["all", "attention", "feed_forward", "norms_and_biases", "biases"]


class Frozen(Mode):
    """Nothing trains."""

    mode: Literal["frozen"] = "frozen"


class Full(Mode):
    """Every tensor trains, at the run's learning rate times `lr_scale`."""

    mode: Literal["full"] = "full"
    lr_scale: float = Field(1.0, gt=0)

    @property
    def own(self) -> OwnTensors:
        return OwnTensors(self.lr_scale)


class Partial(Mode):
    """Some of the block's tensors, or some rows of each matrix, train (methods.md 2, "partly updated").

    Attributes:
        train: which tensors train: a group, or a list of modules within the block, such as `mlp.down_proj`.
        rows: the share of each matrix's rows that trains. Vectors always train whole.
        rows_seed: draws the rows.
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["partial"] = "partial"
    train: Annotated[PartialParts | tuple[str, ...], group_or_names(PartialParts)] = "all"
    rows: float = Field(1.0, gt=0, le=1)
    rows_seed: int = Field(0, ge=0)
    lr_scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _leaves_something_out(self) -> Partial:
        if self.train == "all" and self.rows == 1.0:
            raise ValueError(
                "it does not say what trains: use train: attention | feed_forward | norms_and_biases | biases, "
                "or rows below 1 (mode: full trains everything)"
            )
        return self

    @property
    def own(self) -> OwnTensors:
        return OwnTensors(self.lr_scale, self.train, self.rows, self.rows_seed)

    @property
    def structure(self) -> Mode | None:
        return self.model_copy(update={"lr_scale": 1.0}) if self.rows < 1 else None


BlockMode = Annotated[Frozen | Full | Partial | AddingMode, Field(discriminator="mode")]
PartMode = Annotated[Frozen | Full, Field(discriminator="mode")]
