"""The work that a cost is predicted for, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from frostline.anatomy import Anatomy
from frostline.plan import FloraOptions, Optimizer, check_optimizer

Dtype = Literal["float32", "bfloat16", "float16"]

BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT = BYTES["float32"]


class Workload(BaseModel):
    """What is trained on, and how.

    `rows` examples per epoch; `batch` rows at a time on one device, each of `length` tokens after padding (the mean
    over the batches); the optimizer steps after `accumulation` batches. Several `devices` share the rows, and the
    model too: FSDP shards it block by block. `label_tokens` is the length of the
    targets that an encoder-decoder's decoder reads (None: as `length`); other models have none.

    `dtype` is what matrices are multiplied in: bfloat16 means autocast. `frozen_dtype` is what frozen tensors
    are kept in, the checkpoint's; trained ones are always float32. `frozen_bits` rounds the frozen matrices of the
    blocks to 8 or 4 bits. `attention` is transformers' `attn_implementation`. `checkpointing` recomputes the
    activations of trained blocks. `dropout` says that trained blocks have active dropout (`has_dropout` reads it
    from a config). `optimizer_options` are FLORA's, which runs on one device. `optimizer_in_backward` steps each
    parameter when its gradient is there, and frees that: on one device, without accumulation.

    `activation_cache`: what lies below the boundary runs once, before training, and its weights leave memory; the
    store holds `stored_share` of the rows already. `loss_positions`: the head and the loss run at label positions
    alone, `label_share` of all, in chunks, and the last block computes keys and values everywhere but all else
    at label positions (a classifier's: at one position of each row), unless it has dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(1000, gt=0)
    length: int = Field(128, gt=0)
    batch: int = Field(32, gt=0)
    devices: int = Field(1, gt=0)
    accumulation: int = Field(1, gt=0)
    epochs: float = Field(1, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: Optimizer = "adamw"
    optimizer_options: FloraOptions | None = None
    optimizer_in_backward: bool = False
    attention: Literal["eager", "sdpa"] = "sdpa"
    checkpointing: bool = False
    dropout: bool = False
    label_tokens: int | None = Field(None, gt=0)
    frozen_dtype: Dtype = "float32"
    frozen_bits: Literal[4, 8] | None = None
    activation_cache: bool = False
    stored_share: float = Field(0.0, ge=0, le=1)
    label_share: float = Field(1.0, gt=0, le=1)
    loss_positions: bool = False

    @model_validator(mode="after")
    def _can_step_in_backward(self) -> Workload:
        if self.optimizer_in_backward and (self.accumulation > 1 or self.devices > 1):
            raise ValueError("optimizer_in_backward goes without accumulation, on one device")
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Workload:
        check_optimizer(self.optimizer, self.optimizer_options)
        if self.optimizer == "flora" and self.devices > 1:
            raise ValueError("optimizer: flora runs on one device")
        return self

    @property
    def flora(self) -> FloraOptions | None:
        """FLORA's options, None with another optimizer."""
        return (self.optimizer_options or FloraOptions()) if self.optimizer == "flora" else None

    @property
    def plain(self) -> Workload:
        """The same work, done in full in every step: no activation cache, every position computed, and an optimizer's
        step after the backward pass."""
        usual = {
            "activation_cache": False,
            "stored_share": 0.0,
            "loss_positions": False,
            "optimizer_in_backward": False,
        }
        return self.model_copy(update=usual)

    @property
    def steps(self) -> float:
        """Batches of one device in all epochs together; the last may be a part of one."""
        return self.rows * self.epochs / (self.batch * self.devices)

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


def weight_bytes(trains: bool, workload: Workload) -> int:
    """Bytes per number of a weight: float32 if it trains, else the checkpoint's type."""
    return FLOAT if trains else BYTES[workload.frozen_dtype]


def state_bytes(trains: bool, workload: Workload) -> int:
    """Bytes per number of hidden states: of the type in which their weights come into the forward pass, which FSDP
    gathers in bfloat16 under autocast."""
    return 2 if workload.devices > 1 and workload.autocast else weight_bytes(trains, workload)


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
