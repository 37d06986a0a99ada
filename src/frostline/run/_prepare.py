"""Load what a run needs: the rows, then the model in a trainer, under the schedule of the strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import find_anatomy, tensor_hashes
from frostline.bottom import Load
from frostline.checkpoints import load_tokenizer, quiet_libraries, resize_embeddings, resized_tensors, rows_of_the_base
from frostline.core.errors import ConfigError, a_noun, first_line
from frostline.cost import Workload
from frostline.engine import StepMeter, Trainer, fill_from_first
from frostline.loss_positions import pack_rows
from frostline.processes import running
from frostline.records import RunRecord
from frostline.run._choosing import Chosen, as_planned, choose, chosen_before, measure_here
from frostline.run._config import RunConfig
from frostline.run._device import device, uses_bfloat16
from frostline.run._judge import JudgedTrainer, clock_of
from frostline.run._optim import flora_of, optim_arguments
from frostline.run._phases import Phases
from frostline.run._probing import LoadedModel
from frostline.run._setup import check_length, config_for, load_model, task_for
from frostline.run._split import trainer_for
from frostline.run._steps import steps_of
from frostline.run._streaming import load_streaming
from frostline.run._work import Data, evaluation_to_fit, shares_model, with_eval_batch, workload_of
from frostline.strategies import GIVEN
from frostline.surgery import Quantized, quantize_frozen
from frostline.tasks import (
    MOST_ROWS,
    Collator,
    Encoded,
    ModelKind,
    PackingCollator,
    Task,
    TaskKind,
    encode,
    eval_batch_size,
    model_kind,
    prepare_tokenizer,
)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train. `asked` is the config as it was given; `config` has what the strategy chose.

    `seconds` are those of preparing it, on the clock of its budget.
    """

    asked: RunConfig
    chosen: Chosen
    data: Data
    model: Any
    trainer: Trainer
    steps: StepMeter
    quantized: Quantized | None = None
    seconds: float = 0.0

    @property
    def config(self) -> RunConfig:
        return self.chosen.config


def read_data(config: RunConfig, phases: Phases | None = None) -> Data:
    """The task's rows, encoded for the model, with the time of it in `phases`. Raises `UserError` for wrong input."""
    phases = phases or Phases()
    with phases.of("reading"):
        task = task_for(config.model, config.task, config.data)
    model_config = config_for(config.model, task)
    check_length(config.max_length, model_config, config.model)
    _check_loggers(config.report_to)
    tokenizer = prepare_tokenizer(load_tokenizer(config.model))
    kind = model_kind(model_config)
    if config.packing:
        _check_packable(config, task, kind)
    if config.frozen_bits and (config.activation_cache == "on" or config.streaming):
        raise ConfigError(
            "frozen_bits: quantized blocks stay in memory, and an activation cache removes them from it: leave "
            "frozen_bits out, or activation_cache and streaming"
        )
    with phases.of("tokenizing"):
        rows, eval_rows = (encode(task, split, tokenizer, config.max_length, kind) for split in ("train", "eval"))
    shifted = kind == "decoder" and task.kind is not TaskKind.TAGGING
    for split in (rows, eval_rows):
        if not config.resize_embeddings:
            split.check_ids(tokenizer, model_config, "resize_embeddings=true, or ")
        _check_something_to_learn(split, config.max_length, shifted=shifted)
    return Data(task, tokenizer, rows, eval_rows)


def prepare(asked: RunConfig, data: Data, before: RunRecord | None = None, chosen: Chosen | None = None) -> Prepared:
    """Load the model, put it in a trainer, and decide on the activation cache.

    Args:
        asked: the config as it was given.
        data: the task's rows (`read_data`).
        before: the record of a run that is resumed: what a planner chose for it stays.
        chosen: what was chosen already; None: the strategy chooses.

    Raises `UserError` for a strategy that does not fit the model, and for an activation cache or streaming that is not
    possible.
    """
    clock = clock_of(isinstance(asked.budget.time, str))
    begun = clock()
    here = _in_its_precision(asked, before)
    with quiet_libraries():
        goes_on = before.chosen if before is not None and chosen is None else None
        if before is not None and goes_on is not None and goes_on["mode"] == GIVEN:
            planned = as_planned(here, before)
            model, chosen, load_bottom = load(planned, data, None, lambda: _steps(planned, data))
            chosen = replace(chosen, choice=goes_on)
        else:
            if before is not None and goes_on is not None:
                chosen = chosen_before(here, before)
            model, chosen, load_bottom = load(here, data, chosen, lambda: _steps(here, data))
    with quiet_libraries(), running().together():
        config = chosen.config
        prepare_tokenizer(data.tokenizer, model)
        steps = StepMeter()
        make = trainer_for(chosen.split, config) if data.held_out is None else JudgedTrainer
        trainer = make(
            model,
            _arguments(config),
            schedule=chosen.schedule,
            optimizer_cls_and_kwargs=flora_of(config.optim, config.optim_args, config.seed),
            optimizer_in_backward=config.optimizer_in_backward,
            keep_left_state=config.keep_left_state,
            activation_cache="off" if config.frozen_bits else config.activation_cache,
            activation_cache_limit=config.activation_cache_bytes,
            load_bottom=load_bottom,
            train_dataset=data.rows,
            eval_dataset=data.eval_rows,
            data_collator=collator_for(config, data),
            processing_class=data.tokenizer,
            callbacks=[steps],
        )
        if isinstance(trainer, JudgedTrainer) and data.held_out is not None:
            trainer.held_out, trainer.first_steps = data.held_out, chosen.first_steps
        trainer.remove_callback(PrinterCallback)
        _check_new_rows(model, config.strategy)
        bits = config.frozen_bits
        quantized = quantize_frozen(model, trainer.applied.anatomy, bits) if bits else None
        if config.packing:
            pack_rows(model, data.rows, PackingCollator())
        trainer.check_sharding()
        trainer.session.decide()
        chosen = replace(chosen, config=with_eval_batch(config, data, trainer.applied))
        trainer.args.per_device_eval_batch_size = _eval_batch(chosen.config, data, model.config)
    return Prepared(asked, chosen, data, model, trainer, steps, quantized, clock() - begun)


def _in_its_precision(config: RunConfig, before: RunRecord | None) -> RunConfig:
    """The config of a resumed run: what this machine decides where nothing is given stays as the run began."""
    if before is None:
        return config
    began: dict[str, Any] = {}
    if config.bf16 is None and "autocast" in before.versions:
        began["bf16"] = before.versions["autocast"] == "bfloat16"
    if config.frozen_dtype == "auto":
        began["frozen_dtype"] = before.model.dtype
    return config.model_copy(update=began)


def _steps(config: RunConfig, data: Data) -> int:
    return steps_of(_arguments(config), len(data.rows))


def load(
    config: RunConfig, data: Data, goes_on: Chosen | None, steps: Callable[[], int]
) -> tuple[Any, Chosen, Load | None]:
    """The model, what its strategy chose, and what reads its bottom by name where that is not in memory.

    Args:
        config: the config as it was given.
        data: the task's rows.
        goes_on: what was chosen already; None: the strategy chooses.
        steps: gives the optimizer steps of the run.
    """
    if config.streaming:
        return load_streaming(config, data, goes_on)
    with running().together():
        model = load_model(config.model, data.task, seed=config.seed, dtype=config.frozen_dtype)
    if shares_model(config) and running().count > 1:
        fill_from_first(model, device())
    with running().together():
        if config.resize_embeddings:
            resize_embeddings(model, max(data.tokenizer.get_vocab().values()) + 1)
    if goes_on is not None:
        return model, goes_on, None
    anatomy = find_anatomy(model)

    def work() -> Workload:
        return workload_of(config, data, anatomy, model.config, str(model.dtype))

    def loaded() -> LoadedModel:
        prepare_tokenizer(data.tokenizer, model)
        return LoadedModel(model.to(device()), tensor_hashes(model))

    blocks = measure_here(loaded, model, anatomy, config, data)
    evaluation = evaluation_to_fit(config, data, anatomy, model.config)
    return model, choose(config, anatomy, work, steps(), blocks, model.config, type(model), evaluation), None


def _check_new_rows(model: Any, strategy: str) -> None:
    """Embeddings that were drawn say nothing until they train."""
    if rows_of_the_base(model) is None:
        return
    for name in sorted(resized_tensors(model)):
        if not model.get_parameter(name).requires_grad:
            raise ConfigError(
                f"resize_embeddings: the new embeddings are drawn at random and have to train, but strategy "
                f"'{strategy}' freezes {name}: use strategy=all, or a plan file that trains it"
            )


def collator_for(config: RunConfig, data: Data) -> Collator | PackingCollator:
    """What makes a batch of the run's rows."""
    if config.packing:
        return PackingCollator()
    return Collator(data.tokenizer, pad_to=config.max_length if config.pad_to_max_length else None)


def _check_packable(config: RunConfig, task: Task, kind: ModelKind) -> None:
    if kind != "decoder" or task.kind not in (TaskKind.GENERATION, TaskKind.LANGUAGE, TaskKind.CHOICE):
        raise ConfigError(
            "packing: only a decoder on a generation task can train on packed rows "
            f"(this is {a_noun(kind)} on a {task.kind} task): use train_sampling_strategy=group_by_length"
        )
    if config.pad_to_max_length:
        raise ConfigError("pad_to_max_length: packed rows have no padding: leave pad_to_max_length or packing out")


def _check_something_to_learn(rows: Encoded, max_length: int, *, shifted: bool) -> None:
    targets = rows.label_counts(shifted=shifted)
    if len(targets) and not targets.any():
        raise ConfigError(
            f"max_length: {max_length} tokens leave nothing to predict in any row: use a larger max_length"
        )


def _check_loggers(names: Sequence[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(
                f"report_to: '{name}' is not installed, or transformers does not know it: use one of "
                f"{', '.join(known) or 'none'}"
            )


def _eval_batch(config: RunConfig, data: Data, model_config: Any) -> int:
    """The rows of an evaluation's batch: as many as there is room for, where the config has no number."""
    return config.per_device_eval_batch_size or eval_batch_size(data.task.kind, model_config, data.eval_rows)


def _arguments(config: RunConfig) -> TrainingArguments:
    if config.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError("bf16: this GPU does not compute in bfloat16: use bf16=false")
    given: dict[str, Any] = {
        "output_dir": str(config.folder),
        "use_cpu": not torch.accelerator.is_available(),
        "seed": config.seed,
        "train_sampling_strategy": config.train_sampling_strategy,
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.num_train_epochs,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size or MOST_ROWS,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        **optim_arguments(config.optim, config.optim_args),
        "bf16": uses_bfloat16(config.bf16),
        "activation_checkpointing": config.activation_checkpointing,
        "eval_strategy": "steps" if config.eval_steps else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "logging_steps": config.logging_steps,
        "report_to": list(config.report_to) or "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    try:
        return TrainingArguments(**{**given, **copy.deepcopy(config.training)})  # it changes `fsdp_config`
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"transformers.TrainingArguments: {first_line(error)}") from None
