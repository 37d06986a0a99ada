"""Settings under `training:`: any field of `transformers.TrainingArguments` that frostline does not decide itself.

Every field of the installed version is one of three things: a setting of `RunConfig` with the same name, a field that
is passed on, or one that is refused, with the reason and what to use instead (`REFUSED`). A field that would have no
effect is refused too, so that nothing is ignored in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from frostline.core.settings import first_error

_OTHERS = "a run trains on one device, by DDP (torchrun) or by FSDP2: use training.fsdp=true to share a large model"
_HUB = "frostline uploads nothing: use frostline merge, then upload that folder"
_NO_METRICS = "it has no effect here, since evaluation while training computes the loss alone: use frostline evaluate"
_COMPILED = "frostline removes and replaces blocks, which a compiled model does not allow: leave it out"
_MODES = "frostline train always trains, and evaluates before and after: leave it out"

REFUSED: Mapping[str, str] = {
    "output_dir": "use out",
    "optim_target_modules": "the plan decides what trains: leave it out",
    "fp16": "use bf16=true: float16 needs loss scaling, which frostline does not support",
    "bf16_full_eval": "it has no effect here: evaluations run in the precision of training, use bf16",
    "fp16_full_eval": "it has no effect here: evaluations run in the precision of training, use bf16",
    "gradient_checkpointing": "use activation_checkpointing",
    "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": "it replaces forward passes that frostline has checked: leave it out",
    "liger_kernel_config": "it replaces forward passes that frostline has checked: leave it out",
    "use_cache": "keys and values of earlier tokens are of no use in training: leave it out",
    "auto_find_batch_size": "predicted cost and record need a fixed batch: use per_device_train_batch_size",
    "logging_strategy": "use logging_steps",
    "logging_nan_inf_filter": "it has no effect here: a loss that is not a number ends the training",
    "log_level": "frostline keeps libraries quiet while it trains: leave it out",
    "log_level_replica": "frostline keeps libraries quiet while it trains: leave it out",
    "disable_tqdm": "frostline shows its own progress, on standard error: leave it out",
    "eval_strategy": "use eval_steps, which alone switches evaluation on",
    "prediction_loss_only": _NO_METRICS,
    "eval_do_concat_batches": _NO_METRICS,
    "eval_use_gather_object": _NO_METRICS,
    "eval_accumulation_steps": _NO_METRICS,
    "include_for_metrics": _NO_METRICS,
    "batch_eval_metrics": _NO_METRICS,
    "save_only_model": "a checkpoint without the optimizer's state cannot be resumed: leave it out",
    "save_strategy": "use save_steps, which alone switches checkpoints on",
    "enable_jit_checkpoint": "a run that is told to stop ends at once, and --resume continues it: use save_steps",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "ignore_data_skip": "a resumed run must end with the same weights: leave it out",
    "restore_callback_states_from_checkpoint": "it has no effect here: frostline's callbacks keep no state",
    "use_cpu": "the accelerator is used where there is one: use CUDA_VISIBLE_DEVICES= to hide it",
    "accelerator_config": "frostline decides how batches are dealt to processes: leave it out",
    "parallelism_config": _OTHERS,
    "remove_unused_columns": "the task decides which columns the model reads: use data",
    "label_names": "the task decides which columns the model reads: use data",
    "length_column_name": "it has no effect here: lengths are counted from the tokens",
    "ddp_backend": "the backend follows from the device: leave it out",
    "deepspeed": _OTHERS,
    "debug": "it reads every module, and frozen blocks may not be in memory: leave it out",
    "skip_memory_metrics": "peak memory is always measured, and is in the record: leave it out",
    "do_train": _MODES,
    "do_eval": _MODES,
    "do_predict": _MODES,
    "resume_from_checkpoint": "use --resume",
    "local_rank": "the launcher sets it (torchrun)",
}

NEEDS: Mapping[str, str] = {
    "activation_checkpointing_kwargs": "activation_checkpointing",
    "eval_delay": "eval_steps",
    "eval_on_start": "eval_steps",
    "load_best_model_at_end": "eval_steps",
    "metric_for_best_model": "load_best_model_at_end",
    "greater_is_better": "load_best_model_at_end",
    "dataloader_persistent_workers": "dataloader_num_workers",
    "dataloader_prefetch_factor": "dataloader_num_workers",
    "dataloader_multiprocessing_context": "dataloader_num_workers",
    "dataloader_in_order": "dataloader_num_workers",
    "fsdp_config": "fsdp",
}
"""Fields that act only beside another setting."""

AT_LEAST: Mapping[str, float] = {
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "dataloader_num_workers": 0,
    "label_smoothing_factor": 0,
}
BELOW: Mapping[str, float] = {"adam_beta1": 1, "adam_beta2": 1, "label_smoothing_factor": 1}
"""Bounds that torch checks late, or transformers not at all."""


@cache
def fields() -> tuple[str, ...]:
    """The fields of `TrainingArguments` in the installed version."""
    return tuple(field.name for field in dataclasses.fields(TrainingArguments) if field.init)


def top_level_names() -> dict[str, str]:
    """What to use for a field of `TrainingArguments` that is given outside `training`."""
    return {name: f"training.{name}" for name in fields() if name not in REFUSED} | {
        name: reason.removeprefix("use ") for name, reason in REFUSED.items() if reason.startswith("use ")
    }


def read_training(given: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """The settings under `training:`, checked against `TrainingArguments`.

    Args:
        given: the settings by name.
        own: names of the run's own settings, which have no place here.

    Raises `ValueError` for a name that is unknown, refused or a setting of the run, and for a wrong type.
    """
    own = set(own)
    return {name: _read(str(name), value, own) for name, value in given.items()}


def _read(name: str, value: Any, own: set[str]) -> Any:
    if name in REFUSED:
        raise ValueError(f"{name}: {REFUSED[name]}")
    if name not in fields():
        close = difflib.get_close_matches(name, fields(), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else "use a field of transformers.TrainingArguments"
        raise ValueError(f"unknown field '{name}' of TrainingArguments: {hint}")
    if name in own:
        raise ValueError(f"{name}: give it at the top level ({name}=...)")
    try:
        _adapter(name).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name}: {first_error(error)}") from None
    low, high = AT_LEAST.get(name), BELOW.get(name)
    if isinstance(value, int | float) and low is not None and value < low:
        raise ValueError(f"{name}: it should be greater than or equal to {low} (given: {value})")
    if isinstance(value, int | float) and high is not None and value >= high:
        raise ValueError(f"{name}: it should be less than {high} (given: {value})")
    return value


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    hint = typing.get_type_hints(TrainingArguments)[name]
    return TypeAdapter(bool | hint if name == "fsdp" else hint)  # its type leaves out what its help asks for


def check_needs(training: Mapping[str, Any], config: Any) -> None:
    """Raise `ValueError` for a field that has no effect without another setting, which `config` does not have."""
    for name in training:
        needed = NEEDS.get(name)
        if needed is None:
            continue
        inside = needed in fields() and not hasattr(config, needed)
        if not (training.get(needed) if inside else getattr(config, needed)):
            where = f"training.{needed}" if inside else needed
            raise ValueError(f"training.{name} has no effect without {where}: give that too, or leave it out")
    best = training.get("metric_for_best_model", "loss")
    if best not in ("loss", "eval_loss"):
        raise ValueError(
            f"training.metric_for_best_model: evaluation while training computes only the loss (given: {best!r})"
        )
    if training.get("load_best_model_at_end") and config.save_steps != config.eval_steps:
        raise ValueError(
            "training.load_best_model_at_end needs a checkpoint at each evaluation: set save_steps to eval_steps"
        )
