"""What training does to one block: the modes and their options, as pure data."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from frostline.core.settings import Options

PartialParts = Literal["all", "attention", "feed_forward", "norms_and_biases", "biases"]
LoraTargets = Literal["default", "attention", "feed_forward", "all"]


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
    train: PartialParts | tuple[str, ...] = "all"
    rows: float = Field(1.0, gt=0, le=1)
    rows_seed: int = Field(0, ge=0)
    lr_scale: float = Field(1.0, gt=0)

    @field_validator("train", mode="before")
    @classmethod
    def _group_or_modules(cls, value: Any) -> Any:
        return _group_or_names(value, PartialParts)

    @model_validator(mode="after")
    def _leaves_something_out(self) -> Partial:
        if self.train == "all" and self.rows == 1.0:
            raise ValueError(
                "a partial block names what trains: give train: attention | feed_forward | "
                "norms_and_biases | biases, or rows below 1 (mode: full trains everything)"
            )
        return self


class Lora(Options):
    """Low-rank updates beside the block's frozen matrices (Hu et al. 2021), made by PEFT.

    `targets` is which matrices: `default` is what PEFT adapts for this model family (query and value for
    most), or all of the attention's when PEFT does not know the family; or a group; or module names.
    """

    mode: Literal["lora"] = "lora"
    r: int = Field(8, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: LoraTargets | tuple[str, ...] = "default"
    lr_scale: float = Field(1.0, gt=0)

    @field_validator("targets", mode="before")
    @classmethod
    def _group_or_modules(cls, value: Any) -> Any:
        return _group_or_names(value, LoraTargets)


def _group_or_names(value: Any, groups: Any) -> Any:
    named = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    if not named and value not in get_args(groups):
        raise ValueError(f"give {' | '.join(get_args(groups))}, or a list of module names")
    return value


BlockMode = Annotated[Frozen | Full | Partial | Lora, Field(discriminator="mode")]
PartMode = Annotated[Frozen | Full, Field(discriminator="mode")]
