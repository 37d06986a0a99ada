"""What a run needs, loaded: its rows, then its model under the strategy's schedule in a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import find_anatomy, tensor_hashes
from frostline.bottom import Load
from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.core.errors import ConfigError
from frostline.core.labels import IGNORED
from frostline.cost import Workload
from frostline.engine import StepMeter, Trainer
from frostline.loss_positions import pack_rows
from frostline.records import RunRecord
from frostline.run._choosing import Chosen, choose, chosen_before, measure_here
from frostline.run._config import RunConfig
from frostline.run._device import device, uses_bfloat16
from frostline.run._probing import LoadedModel
from frostline.run._setup import check_length, config_for, load_model
from frostline.run._split import trainer_for
from frostline.run._streaming import load_streaming
from frostline.run._work import Data, optimizer_of, workload_of
from frostline.surgery import Quantized, quantize_frozen
from frostline.tasks import (
    Collator,
    Encoded,
    ModelKind,
    PackingCollator,
    Task,
    TaskKind,
    encode,
    load_task,
    model_kind,
    prepare_tokenizer,
)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train. `asked` is its config as it was given, `config` with what its strategy chose."""

    asked: RunConfig
    chosen: Chosen
    data: Data
    model: Any
    trainer: Trainer
    steps: StepMeter
    quantized: Quantized | None = None

    @property
    def config(self) -> RunConfig:
        return self.chosen.config


def read_data(config: RunConfig) -> Data:
    """The task's rows, encoded for the model. Raises `UserError` for bad input."""
    task = load_task(config.task, config.data)
    model_config = config_for(config.model, task)
    check_length(config.max_length, model_config, config.model)
    _check_loggers(config.report_to)
    tokenizer = prepare_tokenizer(load_tokenizer(config.model))
    kind = model_kind(model_config)
    if config.batching == "packed":
        _check_packable(config, task, kind)
    if config.frozen_bits and (config.activation_cache == "on" or config.streaming):
        raise ConfigError(
            "frozen_bits: rounded blocks stay in memory, an activation cache takes them out: leave one of them out"
        )
    rows, eval_rows = (encode(task, split, tokenizer, config.max_length, kind) for split in ("train", "eval"))
    for split in (rows, eval_rows):
        _check_something_to_learn(split, config.max_length, shifted=kind == "decoder")
    return Data(task, tokenizer, rows, eval_rows)


def prepare(asked: RunConfig, data: Data, before: RunRecord | None = None) -> Prepared:
    """Load the model, put it in a trainer, and decide on the activation cache.

    `before` is the record of a run that goes on: what a planner chose for it stays. Raises `UserError` for a strategy
    that does not fit the model, and for an activation cache or streaming that cannot be.
    """
    with quiet_libraries():
        model, chosen, load_bottom = _load(asked, data, before)
        config = chosen.config
        prepare_tokenizer(data.tokenizer, model)
        steps = StepMeter()
        trainer = trainer_for(chosen.split, config)(
            model,
            _arguments(config),
            schedule=chosen.schedule,
            optimizer_cls_and_kwargs=optimizer_of(config, config.seed),
            optimizer_in_backward=config.optimizer_in_backward,
            activation_cache="off" if config.frozen_bits else config.activation_cache,
            activation_cache_limit=config.activation_cache_bytes,
            load_bottom=load_bottom,
            train_dataset=data.rows,
            eval_dataset=data.eval_rows,
            data_collator=_collator(config, data),
            processing_class=data.tokenizer,
            callbacks=[steps],
        )
        trainer.remove_callback(PrinterCallback)
        with suppress(OSError):  # transformers makes it, and what comes next may refuse; a folder in use stays
            config.folder.rmdir()
        bits = config.frozen_bits
        quantized = quantize_frozen(model, trainer.applied.anatomy, bits) if bits else None
        if config.batching == "packed":
            pack_rows(model, data.rows, PackingCollator())
        trainer.session.decide()
    return Prepared(asked, chosen, data, model, trainer, steps, quantized)


def _load(config: RunConfig, data: Data, before: RunRecord | None) -> tuple[Any, Chosen, Load | None]:
    goes_on = chosen_before(config, before) if before is not None and before.chosen is not None else None
    if config.streaming:
        return load_streaming(config, data, goes_on)
    model = load_model(config.model, data.task, seed=config.seed, dtype=config.frozen_dtype)
    if goes_on is not None:
        return model, goes_on, None
    anatomy = find_anatomy(model)

    def work() -> Workload:
        return workload_of(config, data, anatomy, model.config, str(model.dtype))

    def loaded() -> LoadedModel:
        prepare_tokenizer(data.tokenizer, model)
        return LoadedModel(model.to(device()), tensor_hashes(model))

    blocks = measure_here(loaded, model, anatomy, config, data)
    return model, choose(config, anatomy, work, blocks, model.config, type(model)), None


def _collator(config: RunConfig, data: Data) -> Collator | PackingCollator:
    if config.batching == "packed":
        return PackingCollator()
    return Collator(data.tokenizer, pad_to=config.max_length if config.pad_to_max_length else None)


def _check_packable(config: RunConfig, task: Task, kind: ModelKind) -> None:
    if kind != "decoder" or task.kind is TaskKind.CLASSIFICATION:
        raise ConfigError(
            f"batching: packed is for decoders that learn to write, not a {kind} on a {task.kind} task: take grouped"
        )
    if config.pad_to_max_length:
        raise ConfigError("pad_to_max_length: packed batches have no padding: leave one of the two out")


def _check_something_to_learn(rows: Encoded, max_length: int, *, shifted: bool) -> None:
    # A decoder predicts each token from those before it, so that the first one's label does not count.
    targets = [row["labels"][1 if shifted else 0 :] for row in rows if isinstance(row["labels"], list)]
    if targets and all(label == IGNORED for labels in targets for label in labels):
        raise ConfigError(f"max_length: {max_length} tokens leave nothing to predict in any row: allow more")


def _check_loggers(names: Sequence[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"report_to: '{name}' is not installed or not known to transformers; here: {', '.join(known) or 'none'}"
            )


def _arguments(config: RunConfig) -> TrainingArguments:
    if config.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision: this GPU has no bfloat16: take float32")
    return TrainingArguments(
        output_dir=str(config.folder),
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        train_sampling_strategy="group_by_length" if config.batching == "grouped" else "random",
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused" if config.optimizer == "adamw" else "sgd",
        bf16=uses_bfloat16(config.precision),
        activation_checkpointing=config.checkpointing,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=config.keep_checkpoints,
        logging_steps=config.log_every,
        report_to=list(config.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
