"""The settings of one run: from a YAML file, options and `key=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from frostline.core.errors import ConfigError
from frostline.core.places import portable_name
from frostline.core.settings import Options, first_error, lay_over, read_mapping
from frostline.core.sizes import parse_size
from frostline.plan import OptimArgs, read_optim_args
from frostline.run._optim import check_optim, check_optim_args, check_schedule
from frostline.run._training_arguments import check_needs, read_training, top_level_names
from frostline.strategies import Budget
from frostline.tasks import TASKS, Decoding, TaskOptions


def _whole_or_share(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("above 1 it counts steps: use a whole number, or a share below 1")
    return int(value) if value >= 1 or value == 0 else value


Steps = Annotated[float, AfterValidator(_whole_or_share)]
"""A number of optimizer steps; below 1 a share of all of them."""


class RunConfig(Options):
    """The settings of one training run.

    Settings that `transformers.TrainingArguments` has carry its names, types and units; the defaults are frostline's.
    Any other field of it goes under `training`.

    Attributes:
        model: a hub id or a folder.
        task: a built-in name, a file, a folder or a hub data set.
        strategy: a strategy's name (`bot50`, `semantic+lora`, ...) or the path of a plan file. `auto` spends the
            budget: it chooses plan, steps and learning rate by a rule and by trials.
        strategy_options: the strategy's own options, and under `lora` those of an added LoRA.
        budget: what training may use: `memory`, `time`, `disk`; for `auto`.
        calibrate: time a small part of the model first, so that the budget's time may be in seconds without trials.
        out: the run's folder; by default `runs/<model>-<task>-<strategy>-<seed>`.
        data: how the task's rows are read.
        seed: seed of everything that is drawn at random: head, adapters, batches, dropout.
        max_steps: optimizer steps; -1 or not given: `num_train_epochs` counts.
        num_train_epochs: passes over the training rows. With `auto` and a budget of time they only say what full
            fine-tuning would take, of which the time may be a share.
        per_device_train_batch_size: rows of one forward pass on one device.
        gradient_accumulation_steps: forward and backward passes in one optimizer step.
        train_sampling_strategy: the order of the rows: `random`, `sequential`, or `group_by_length`, which leaves
            little padding.
        packing: put the rows of a batch one after another in one sequence without padding. No row attends to another.
            For decoders on generation tasks.
        max_length: tokens of a row; longer rows are truncated.
        pad_to_max_length: pad every batch to `max_length`.
        learning_rate: the highest learning rate, which `lr_scheduler_type` changes over the steps. With `auto` and a
            budget it is chosen, where it is not given.
        lr_scheduler_type: a schedule of transformers: `cosine`, `linear`, `constant`, `polynomial`, ...
        warmup_steps: steps in which the learning rate rises from 0; below 1, a share of all steps.
        weight_decay: weight decay of all trained tensors but biases and norms.
        max_grad_norm: the norm that gradients are clipped to; 0: no clipping.
        optim: an optimizer of transformers (`adamw_torch_fused`, `sgd`, `adafactor`, ...), or `flora`, which keeps
            momentum and accumulated gradients of matrices compressed (docs/flora.md).
        optim_args: arguments of the optimizer, as a mapping or as text: `rank=16,kappa=1000`.
        optimizer_in_backward: step each parameter as soon as its gradient is there, and free the gradient. Needs
            `max_grad_norm: 0` and no accumulation.
        keep_left_state: with a strategy whose plan changes: keep the optimizer's state of what stops training, in the
            host's memory, until it trains again. Without it such state is freed.
        bf16: compute in bfloat16 (autocast over float32 trained tensors); not given: where the hardware is fast at it.
        frozen_dtype: what frozen tensors are kept in; `auto`: the checkpoint's own, or float32 on a processor that
            imitates that. Trained tensors are float32.
        resize_embeddings: give the model embeddings for all tokens of its tokenizer, where it has fewer. The new ones
            are drawn at random and have to train: use a strategy that trains the embeddings.
        frozen_bits: quantize the frozen matrices of the blocks to 8 or 4 bits while training (QLoRA). There is no
            activation cache then.
        frozen_dropout: let dropout act in frozen blocks too, as freezing by `requires_grad` alone does. By default they
            are in eval mode. Where dropout acts below the boundary, no activation cache is possible.
        activation_cache: run the frozen blocks below the lowest trained one once, and train from their stored states;
            `auto`: where that is right and saves work.
        activation_cache_limit: the most that all activation caches may use on disk, such as 20GB.
        streaming: read those frozen blocks one at a time, so that the whole model is never in memory.
        activation_checkpointing: recompute the activations of trained blocks in the backward pass.
        eval_steps: optimizer steps between evaluations of the loss (below 1: a share of all steps); not given: none.
            Quality before and after training is always measured.
        save_steps: optimizer steps between checkpoints (below 1: a share of all steps); not given: none.
        save_total_limit: how many checkpoints stay; null: all of them.
        logging_steps: optimizer steps between entries of the log (below 1: a share of all steps).
        report_to: loggers that transformers knows: `tensorboard`, `wandb`, `trackio`, ...
        threads: CPU threads of torch; by default all.
        per_device_eval_batch_size: rows of one forward pass in an evaluation; not given: at most 32, and as many as a
            language model's logits have room for.
        generate_rows: prompts that an evaluation generates for; by default the task's own number.
        max_new_tokens: tokens that an evaluation generates at most.
        generation: how texts are generated: greedy by default, by beams or by sampling; see `Decoding`.
        training: any other field of `TrainingArguments`, such as `training.adam_beta2=0.95`.
    """

    how_to_list: ClassVar[str] = "frostline train --settings"
    other_names: ClassVar[Mapping[str, str]] = top_level_names() | {
        "batch_size": "per_device_train_batch_size",
        "cache": "activation_cache",
        "epochs": "num_train_epochs",
        "grad_accum": "gradient_accumulation_steps",
        "lr": "learning_rate",
        "momentum": "optim_args, as in optim=sgd optim_args=momentum=0.9",
        "quantize": "frozen_bits",
        "scheduler": "lr_scheduler_type",
        "warmup_ratio": "warmup_steps, with a share of all steps such as 0.1",
    }

    model: str
    task: str
    strategy: str = "auto"
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Budget()
    calibrate: bool = False
    out: str | None = None
    data: TaskOptions = TaskOptions()
    seed: int = Field(42, ge=0, lt=2**32)
    max_steps: PositiveInt | None = None
    num_train_epochs: float = Field(3.0, gt=0)
    per_device_train_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    packing: bool = False
    max_length: PositiveInt = 128
    pad_to_max_length: bool = False
    learning_rate: float = Field(5e-5, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: Steps = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    optim: str = "adamw_torch_fused"
    optim_args: OptimArgs | None = None
    optimizer_in_backward: bool = False
    keep_left_state: bool = False
    bf16: bool | None = None
    frozen_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resize_embeddings: bool = False
    frozen_bits: Literal[4, 8] | None = None
    frozen_dropout: bool = False
    activation_cache: Literal["auto", "on", "off"] = "auto"
    activation_cache_limit: str | None = None
    streaming: bool = False
    activation_checkpointing: bool = False
    eval_steps: Steps | None = Field(None, gt=0)
    save_steps: Steps | None = Field(None, gt=0)
    save_total_limit: PositiveInt | None = 2
    logging_steps: Steps = Field(10, gt=0)
    report_to: tuple[str, ...] = ()
    threads: int | None = Field(None, gt=0, le=4096)
    per_device_eval_batch_size: PositiveInt | None = None
    generate_rows: int | None = Field(None, ge=0)
    max_new_tokens: PositiveInt = 64
    generation: Decoding = Decoding()
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("max_steps", mode="before")
    @classmethod
    def _minus_one_is_not_given(cls, value: Any) -> Any:
        return None if value == -1 else value

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_logger_or_none(cls, value: Any) -> Any:
        return {"none": ()}.get(value, (value,)) if isinstance(value, str) else value

    @field_validator("optim")
    @classmethod
    def _trains_here(cls, value: str) -> str:
        check_optim(value)
        return value

    @field_validator("optim_args", mode="plain")
    @classmethod
    def _of_the_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        return read_optim_args(info.data.get("optim", ""), value)

    @field_validator("training")
    @classmethod
    def _training_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        return read_training(value, cls.model_fields)

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
    def _fit_together(self) -> RunConfig:
        check_optim_args(self.optim, self.optim_args, self.training)
        check_schedule(self.lr_scheduler_type, self.training)
        check_needs(self.training, self)
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
        return Path("runs") / portable_name("-".join(names))


def read_config(path: Path | None, overrides: Sequence[str] = (), **given: Any) -> RunConfig:
    """A run's config: the YAML file, over it the options that are given, over them each `key=value`.

    Keys may be dotted (`data.max_train_rows=100`).

    Args:
        path: the YAML file; None: there is none.
        overrides: `key=value` settings.
        given: settings by name; those that are None count as not given.

    Raises `ConfigError` with the key that is wrong.
    """
    document = {} if path is None else read_mapping(path, "run config", "at least the keys model and task")
    document |= {key: value for key, value in given.items() if value is not None}
    lay_over(document, overrides)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        where = str(path) if path is not None else "run config"
        raise ConfigError(f"{where}: {first_error(error)}") from None


def paths_of(config: RunConfig) -> list[str]:
    """The settings that may be paths: the model, the task (unless it is built in), its evaluation file, a plan file."""
    task = [] if config.task in TASKS else [config.task]
    return [path for path in (config.model, *task, config.data.eval, config.strategy) if path]
