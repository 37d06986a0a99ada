"""The work that a cost is predicted for, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from frostline.anatomy import Anatomy
from frostline.core.settings import refuse_enormous
from frostline.plan import FloraOptions, OptimArgs, read_optim_args

Dtype = Literal["float32", "bfloat16", "float16"]

BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT = BYTES["float32"]


class Workload(BaseModel):
    """What is trained on, and how. Settings that `transformers.TrainingArguments` has carry its names.

    Attributes:
        rows: examples per epoch. Several `devices` share them.
        length: tokens of a row (of each of its texts) after padding: the mean over the batches.
        texts: texts of a row: the choices of a multiple-choice head. Such rows have no activation cache.
        per_device_train_batch_size: rows of a batch on one device.
        devices: devices that train together. They share the model too: FSDP shards it block by block.
        processes: those that train side by side (DDP), each with the whole model. They share the rows.
        gradient_accumulation_steps: batches of a device in one optimizer step.
        num_train_epochs: passes over the rows.
        bf16: matrices are multiplied in bfloat16, under autocast; else in float32.
        optim: a name of `TrainingArguments.optim`, or `flora`, which runs on one device.
        optim_args: arguments of the optimizer; for flora, `FloraOptions`.
        optimizer_in_backward: step each parameter when its gradient is there, and free the gradient: on one device,
            without accumulation.
        attention: transformers' `attn_implementation`.
        activation_checkpointing: the backward pass recomputes the activations of trained blocks.
        dropout: trained blocks have active dropout (`has_dropout` reads it from a config).
        label_tokens: length of the targets that an encoder-decoder's decoder reads; None: as `length`. Other models
            have none.
        frozen_dtype: what frozen tensors are kept in, the checkpoint's; trained ones are always float32.
        frozen_bits: the frozen matrices of the blocks are quantized to 8 or 4 bits.
        activation_cache: what lies below the boundary runs once, before training, and its weights leave memory.
        stored_share: share of the rows that the activation cache holds already.
        label_share: share of all positions that carry a label.
        loss_positions: head and loss run at label positions alone, in chunks. The last block computes keys and values
            at all positions, and everything else at label positions (a classifier's: at one position of each row),
            unless it has dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(1000, gt=0)
    length: int = Field(128, gt=0)
    texts: int = Field(1, gt=0)
    per_device_train_batch_size: int = Field(32, gt=0)
    devices: int = Field(1, gt=0)
    processes: int = Field(1, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    num_train_epochs: float = Field(1, gt=0)
    bf16: bool = False
    optim: str = "adamw_torch_fused"
    optim_args: OptimArgs | None = None
    optimizer_in_backward: bool = False
    attention: Literal["eager", "sdpa"] = "sdpa"
    activation_checkpointing: bool = False
    dropout: bool = False
    label_tokens: int | None = Field(None, gt=0)
    frozen_dtype: Dtype = "float32"
    frozen_bits: Literal[4, 8] | None = None
    activation_cache: bool = False
    stored_share: float = Field(0.0, ge=0, le=1)
    label_share: float = Field(1.0, gt=0, le=1)
    loss_positions: bool = False

    @field_validator("optim_args", mode="plain")
    @classmethod
    def _of_the_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        return read_optim_args(info.data.get("optim", ""), value)

    @model_validator(mode="after")
    def _no_enormous_numbers(self) -> Workload:
        refuse_enormous(self)
        return self

    @model_validator(mode="after")
    def _can_step_in_backward(self) -> Workload:
        if self.optimizer_in_backward and (self.gradient_accumulation_steps > 1 or self.devices > 1):
            raise ValueError("optimizer_in_backward needs one device and gradient_accumulation_steps=1")
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Workload:
        if self.optim == "flora" and self.devices > 1:
            raise ValueError("optim: flora runs on one device: use devices=1 or another optimizer")
        return self

    @property
    def flora(self) -> FloraOptions | None:
        """FLORA's options, None with another optimizer."""
        if self.optim != "flora":
            return None
        return self.optim_args if isinstance(self.optim_args, FloraOptions) else FloraOptions()

    @property
    def plain(self) -> Workload:
        """The same work without frostline's savings: no activation cache, every position computed, the optimizer's step
        after the backward pass."""
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
        return self.rows * self.num_train_epochs / (self.per_device_train_batch_size * self.side_by_side)

    @property
    def side_by_side(self) -> int:
        """Batches that are computed at the same time."""
        return self.devices * self.processes

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimizer in all epochs together, at least 1."""
        return max(1, round(self.steps / self.gradient_accumulation_steps))

    def row_tokens(self, stack: str, anatomy: Anatomy) -> int:
        """How many tokens of one row pass the blocks of a stack ("encoder" or "decoder")."""
        reads_targets = anatomy.encoder_decoder and stack == "decoder"
        return self.label_tokens or self.length if reads_targets else self.length

    def step_tokens(self, stack: str, anatomy: Anatomy) -> int:
        """How many tokens of one batch pass the blocks of a stack."""
        return self.batch_texts * self.row_tokens(stack, anatomy)

    @property
    def batch_texts(self) -> int:
        """Texts of a batch on one device."""
        return self.per_device_train_batch_size * self.texts


def weight_bytes(trains: bool, workload: Workload) -> int:
    """Bytes per number of a weight: float32 if it trains, else the checkpoint's type."""
    return FLOAT if trains else BYTES[workload.frozen_dtype]


def state_bytes(trains: bool, workload: Workload) -> int:
    """Bytes per number of hidden states: of the type in which their weights come into the forward pass, which FSDP
    gathers in bfloat16 under autocast."""
    return 2 if workload.devices > 1 and workload.bf16 else weight_bytes(trains, workload)


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
