"""The work that a cost is predicted for, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from frostline.anatomy import Anatomy

Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["adamw", "sgd"]

BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class Workload(BaseModel):
    """What is trained on, and how.

    `rows` examples per epoch; `batch` rows at a time, each of `length` tokens after padding (the mean over
    the batches); the optimizer steps after `accumulation` batches. `label_tokens` is the length of the
    targets that an encoder-decoder's decoder reads (None: as `length`); other models have none.

    `dtype` is what matrices are multiplied in: bfloat16 means autocast. `frozen_dtype` is what frozen tensors
    are kept in, the checkpoint's; trained ones are always float32. `attention` is transformers'
    `attn_implementation`. `checkpointing` recomputes the activations of trained blocks. `dropout` says that
    trained blocks have active dropout (`has_dropout` reads it from a config).

    `cold_store`: what lies below the boundary runs once, before training, and its weights leave memory; the
    store holds `stored_share` of the rows already. `reads_only`: the head and the loss run at label positions
    alone, `label_share` of all, in chunks, and the last block computes keys and values everywhere but all else
    at label positions (a classifier's: at one position of each row), unless it has dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(1000, gt=0)
    length: int = Field(128, gt=0)
    batch: int = Field(32, gt=0)
    accumulation: int = Field(1, gt=0)
    epochs: float = Field(1, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: Optimizer = "adamw"
    attention: Literal["eager", "sdpa"] = "sdpa"
    checkpointing: bool = False
    dropout: bool = False
    label_tokens: int | None = Field(None, gt=0)
    frozen_dtype: Dtype = "float32"
    cold_store: bool = False
    stored_share: float = Field(0.0, ge=0, le=1)
    label_share: float = Field(1.0, gt=0, le=1)
    reads_only: bool = False

    @property
    def plain(self) -> Workload:
        """The same work, done in full in every step: no cold store, every position computed."""
        return self.model_copy(update={"cold_store": False, "stored_share": 0.0, "reads_only": False})

    @property
    def steps(self) -> float:
        """Batches in all epochs together; the last may be a part of one."""
        return self.rows * self.epochs / self.batch

    @property
    def autocast(self) -> bool:
        return self.dtype == "bfloat16"

    def row_tokens(self, stack: str, anatomy: Anatomy) -> int:
        """How many tokens of one row pass the blocks of a stack ("encoder" or "decoder")."""
        reads_targets = anatomy.encoder_decoder and stack == "decoder"
        return self.label_tokens or self.length if reads_targets else self.length

    def step_tokens(self, stack: str, anatomy: Anatomy) -> int:
        """How many tokens of one batch pass the blocks of a stack."""
        return self.batch * self.row_tokens(stack, anatomy)


def storage_dtype(dtype: Any) -> Dtype:
    """A torch dtype, or its name, as a workload's `frozen_dtype`; any other than these counts as float32."""
    name = str(dtype).removeprefix("torch.")
    return next((known for known in BYTES if known == name), "float32")


def has_dropout(config: Any) -> bool:
    """Whether a transformers config asks for dropout within the blocks."""
    return any(
        isinstance(value, float) and value > 0
        for key, value in config.to_dict().items()
        if ("dropout" in key or "pdrop" in key) and "classifier" not in key
    )
