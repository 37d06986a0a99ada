"""What training does to one block: the modes and their options, as pure data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from frostline.core.settings import Options
from frostline.plan._adapters import Adapter, Lora, Prefix
from frostline.plan._names import group_or_names

PartialParts = Literal["all", "attention", "feed_forward", "norms_and_biases", "biases"]


class Frozen(Options):
    """Nothing trains."""

    mode: Literal["frozen"] = "frozen"


class Full(Options):
    """Every tensor trains, at the run's learning rate times `lr_scale`."""

    mode: Literal["full"] = "full"
    lr_scale: float = Field(1.0, gt=0)


class Partial(Options):
    """Some of the block's tensors, or some rows of each matrix, train (methods.md 2, "partly updated").

    `train` names the tensors: a group, or modules within the block, such as `mlp.down_proj`. `rows` is the share of
    each matrix's rows that trains, drawn with `rows_seed` (vectors among the named tensors train whole).
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
                "a partial block names what trains: give train: attention | feed_forward | "
                "norms_and_biases | biases, or rows below 1 (mode: full trains everything)"
            )
        return self


BlockMode = Annotated[Frozen | Full | Partial | Lora | Prefix | Adapter, Field(discriminator="mode")]
PartMode = Annotated[Frozen | Full, Field(discriminator="mode")]
