"""What a user writes for one run: a YAML file, options, `key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from frostline.core.errors import ConfigError
from frostline.core.settings import Options, first_error, lay_over, read_mapping
from frostline.core.sizes import parse_size
from frostline.plan import FloraOptions, Optimizer, check_optimizer
from frostline.strategies import Budget
from frostline.tasks import Decoding, TaskOptions


class RunConfig(Options):
    """One training run.

    Attributes:
        model: a hub id or a folder.
        task: a built-in name, a file, a folder or a hub data set.
        strategy: a strategy's name (`bot50`, `semantic+lora`, ...) or the path of a plan file. `auto` measures the
            model on the task and plans for the budget.
        strategy_options: the strategy's own settings, and under `lora` those of an added LoRA.
        budget: what training may take: `memory`, `time`, `disk`; for `auto`.
        calibrate: time a small part of the model first, so that the budget's time may be in seconds.
        out: the run's folder; by default `runs/<model>-<task>-<strategy>-<seed>`.
        data: how the task's rows are read.
        seed: of everything drawn at random: head, adapters, batches, dropout.
        steps: optimizer steps; `epochs` counts when it is not given.
        batch_size: rows per forward pass; an optimizer step takes `gradient_accumulation` of them.
        batching: how rows become batches: `random`; `grouped` by length, which leaves little padding; `packed`
            one after the other in one sequence without padding, which keep to themselves (decoders that learn
            to write only).
        max_length: tokens; longer rows are cut. `pad_to_max_length` pads every batch to it.
        optimizer: `adamw`, `sgd`, or `flora`, which keeps momentum and accumulated gradients of matrices compressed and
            has `optimizer_options`: `rank`, `kappa`, ... (docs/flora.md).
        optimizer_in_backward: step each parameter as soon as its gradient is there, and free the gradient; wants
            `max_grad_norm: 0` and no accumulation.
        precision: `bfloat16` is autocast over float32 trained tensors; `auto` takes it where the hardware has it.
        frozen_dtype: what frozen tensors are kept in; `auto` keeps the checkpoint's. Trained ones are float32.
        frozen_bits: hold the frozen matrices of the blocks in 8 or 4 bits while training (QLoRA); there is no
            activation cache then.
        activation_cache: run the frozen blocks below the lowest trained one once for all, and train from what they
            gave: `auto` where that is right and pays. `activation_cache_limit` is what all stores may take on disk,
            such as 20GB.
        streaming: read those frozen blocks one at a time, so that the whole model is never in memory.
        checkpointing: recompute the activations of trained blocks in the backward pass.
        eval_every, save_every: optimizer steps between evaluations on the loss, and between checkpoints; none
            by default. Quality before and after training is always measured.
        keep_checkpoints: how many checkpoints stay.
        report_to: loggers that transformers knows: tensorboard, wandb, trackio, ...
        threads: CPU threads of torch; all by default.
        generate_rows, max_new_tokens: of the generated part of an evaluation.
        generation: how its texts are generated: greedily by default, by beams, by sampling; see `Decoding`.
    """

    model: str
    task: str
    strategy: str = "auto"
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Budget()
    calibrate: bool = False
    out: str | None = None
    data: TaskOptions = TaskOptions()
    seed: int = Field(42, ge=0, lt=2**32)
    steps: PositiveInt | None = None
    epochs: float = Field(3.0, gt=0)
    batch_size: PositiveInt = 32
    gradient_accumulation: PositiveInt = 1
    batching: Literal["random", "grouped", "packed"] = "random"
    max_length: PositiveInt = 128
    pad_to_max_length: bool = False
    learning_rate: float = Field(5e-5, gt=0)
    lr_schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    optimizer: Optimizer = "adamw"
    optimizer_options: FloraOptions | None = None
    optimizer_in_backward: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    frozen_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    frozen_bits: Literal[4, 8] | None = None
    activation_cache: Literal["auto", "on", "off"] = "auto"
    activation_cache_limit: str | None = None
    streaming: bool = False
    checkpointing: bool = False
    eval_every: PositiveInt | None = None
    save_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    report_to: tuple[str, ...] = ()
    threads: PositiveInt | None = None
    eval_batch_size: PositiveInt = 32
    generate_rows: int | None = Field(None, ge=0)
    max_new_tokens: PositiveInt = 64
    generation: Decoding = Decoding()

    @field_validator("activation_cache", mode="before")
    @classmethod
    def _not_yaml_s(cls, value: Any) -> Any:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("activation_cache_limit", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> Any:
        if isinstance(value, str | int) and not isinstance(value, bool):
            value = str(value)
            parse_size(value, "activation_cache_limit")
        return value

    @model_validator(mode="after")
    def _options_are_the_optimizer_s(self) -> RunConfig:
        check_optimizer(self.optimizer, self.optimizer_options)
        return self

    @property
    def activation_cache_bytes(self) -> int | None:
        """`activation_cache_limit` in bytes."""
        return (
            None
            if self.activation_cache_limit is None
            else parse_size(self.activation_cache_limit, "activation_cache_limit")
        )

    @property
    def folder(self) -> Path:
        """Where the run is recorded."""
        if self.out is not None:
            return Path(self.out)
        names = (Path(self.model).name, Path(self.task).stem, Path(self.strategy).stem, str(self.seed))
        return Path("runs") / "-".join(names)


def read_config(path: Path | None, overrides: Sequence[str] = (), **given: Any) -> RunConfig:
    """A run's config: the YAML file, over it the options that are given, over them each `key=value`.

    Keys may be dotted (`data.max_train_rows=100`). Raises `UserError` with the key at fault.
    """
    document = {} if path is None else read_mapping(path, "run config", "at least the keys model and task")
    document |= {key: value for key, value in given.items() if value is not None}
    lay_over(document, overrides)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        where = str(path) if path is not None else "run config"
        raise ConfigError(f"{where}: {first_error(error)}") from None
