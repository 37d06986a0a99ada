"""Every field of `transformers.TrainingArguments`: a setting of the same name, passed on, or refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from frostline.core.errors import ConfigError
from frostline.cost import optim_names
from frostline.records import RunRecord
from frostline.run import RunConfig, read_config, train
from frostline.run._prepare import _arguments
from frostline.run._training_arguments import NEEDS, REFUSED, fields

INSTALLED = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
OWN = set(RunConfig.model_fields) & set(INSTALLED)

PASSED: dict[str, Any] = {
    "lr_scheduler_kwargs": {"num_cycles": 0.25},
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "average_tokens_across_devices": False,
    "label_smoothing_factor": 0.1,
    "tf32": False,
    "activation_checkpointing_kwargs": {"preserve_rng_state": True},
    "torch_empty_cache_steps": 7,
    "logging_first_step": True,
    "log_on_each_node": False,
    "include_num_input_tokens_seen": "all",
    "run_name": "mine",
    "project": "ours",
    "trackio_space_id": "me/space",
    "trackio_bucket_id": "me/bucket",
    "trackio_static_space_id": "me/static",
    "eval_delay": 2.0,
    "eval_on_start": True,
    "save_on_each_node": True,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "full_determinism": False,
    "data_seed": 3,
    "dataloader_drop_last": True,
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 3,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_in_order": False,
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 5,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": False,
    "ddp_timeout": 60,
    "neftune_noise_alpha": 5.0,
    "fsdp": True,
    "fsdp_config": {"version": 2, "min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False},
}
"""A value for every field that is passed on."""

BESIDE: dict[str, Any] = {
    "activation_checkpointing": True,
    "eval_steps": 5,
    "save_steps": 5,
    "training": {"dataloader_num_workers": 1, "load_best_model_at_end": True, "fsdp": True},
}
"""Settings that some fields need beside them."""


def config(tmp_path: Path, **given: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "task": "t", "out": str(tmp_path / "run"), **given})


def test_every_field_of_the_installed_version_is_accounted_for() -> None:
    assert list(fields()) == INSTALLED
    assert set(INSTALLED) == OWN | set(REFUSED) | set(PASSED), "decide what becomes of a field that is new or gone"
    assert not (OWN & set(REFUSED) or OWN & set(PASSED) or set(REFUSED) & set(PASSED))


@pytest.mark.parametrize("name", INSTALLED)
def test_a_field_reaches_the_trainers_arguments_or_is_refused(tmp_path: Path, name: str) -> None:
    if name not in PASSED:
        with pytest.raises(ValueError, match=f"{name}: .+") as caught:
            config(tmp_path, training={name: 1})
        assert name in REFUSED or "give it at the top level" in str(caught.value)
        return
    beside = {**BESIDE, "training": {**BESIDE["training"], name: PASSED[name]}}
    arguments = _arguments(config(tmp_path, **beside))
    assert getattr(arguments, name) == PASSED[name]


def test_own_settings_reach_the_trainers_arguments(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "num_train_epochs": 1.5,
        "max_steps": 7,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "polynomial",
        "warmup_steps": 0.1,
        "optim": "sgd",
        "optim_args": {"momentum": 0.9, "nesterov": True},
        "weight_decay": 0.1,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "bf16": True,
        "activation_checkpointing": True,
        "logging_steps": 3,
        "report_to": "none",
        "eval_steps": 4,
        "per_device_eval_batch_size": 5,
        "save_steps": 6,
        "save_total_limit": None,
        "seed": 9,
        "train_sampling_strategy": "sequential",
    }
    assert set(given) == OWN
    arguments = _arguments(config(tmp_path, **given))
    expected = {**given, "optim_args": "momentum=0.9,nesterov=True", "report_to": []}
    assert {name: getattr(arguments, name) for name in expected} == expected


def test_not_given_is_minus_one_step_and_no_evaluation(tmp_path: Path) -> None:
    for given in ({}, {"max_steps": -1}):
        arguments = _arguments(config(tmp_path, **given))
        assert (arguments.max_steps, arguments.eval_strategy, arguments.save_strategy) == (-1, "no", "no")


@pytest.mark.parametrize("name", NEEDS)
def test_a_field_that_would_not_act_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"training.{name} has no effect without .*{NEEDS[name]}"):
        config(tmp_path, training={name: PASSED[name]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["training.adam_bta1=0.9"],
            "training: unknown field 'adam_bta1' of TrainingArguments: did you mean 'adam_beta1'?",
        ),
        (["training.adam_beta1=high"], "training: adam_beta1: it should be a valid number"),
        (["training.adam_beta1=0.9", "optim=sgd"], "training.adam_beta1: optim=sgd does not read it"),
        (["training.max_steps=3"], "training: max_steps: give it at the top level"),
        (
            ["training.deepspeed=zero.json"],
            "by DDP (torchrun) or by FSDP2: use training.fsdp=true to share a large model",
        ),
        (["training.fsdp_config.version=2"], "training.fsdp_config has no effect without training.fsdp"),
        (
            ["training.metric_for_best_model=accuracy", *("eval_steps=1", "training.load_best_model_at_end=true")],
            "loss",
        ),
        (["lr_scheduler_type=cosin"], "lr_scheduler_type: unknown schedule 'cosin'"),
        (["lr_scheduler_type=cosine_with_min_lr"], "needs training.lr_scheduler_kwargs.min_lr"),
        (["lr_scheduler_type=reduce_lr_on_plateau"], "a resumed run would not"),
        (["lr_scheduler_type=constant", "training.lr_scheduler_kwargs.a=1"], "reads none"),
        (["optim=adam"], "optim: unknown optimizer: use adamw_torch_fused"),
        (["optim=galore_adamw_layerwise"], "optim: it steps layer by layer"),
        (["optim=galore_adamw"], "optim: it chooses its tensors itself"),
        (["optim=schedule_free_adamw"], "optim: it trains other weights than it evaluates"),
        (["optim=sgd", "optim_args=momentm=0.9"], "optim_args: sgd does not read 'momentm': it reads momentum"),
        (["optim_args=3"], "optim_args: it should be a mapping, or text"),
        (["optim=flora", "optim_args=rank"], "'rank' is not text such as"),
        (["eval_steps=2.5"], "eval_steps: above 1 it counts steps"),
        (["save_steps=0"], "save_steps: it should be greater than 0"),
    ],
)
def test_wrong_settings_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(None, settings, model="m", task="t")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_what_transformers_refuses_is_one_line(tmp_path: Path) -> None:
    wanted = config(tmp_path).model_copy(update={"eval_steps": 5, "training": {"load_best_model_at_end": True}})
    with pytest.raises(ConfigError, match=r"^transformers.TrainingArguments: --load_best_model_at_end requires"):
        _arguments(wanted)


def test_flora_takes_its_options_as_a_mapping_or_as_text() -> None:
    for options in ("optim_args={rank: 3, kappa: 7}", "optim_args='rank=3,kappa=7'"):
        found = read_config(None, ["optim=flora", options], model="m", task="t").optim_args
        assert found is not None and not isinstance(found, dict)
        assert (found.rank, found.kappa) == (3, 7)


def test_arguments_that_flora_has_too_stay_those_of_the_optimizer() -> None:
    found = read_config(None, ["optim=rmsprop", "optim_args.eps=1e-6"], model="m", task="t")
    assert found.optim_args == {"eps": 1e-6}
    assert RunConfig.model_validate(found.model_dump(mode="json")) == found


def _run(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> RunRecord:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Tom saw {'a big ' * (i % 5)}dog"}) + "\n" for i in range(24)))
    fixed = ["per_device_train_batch_size=4", "bf16=false", "threads=1", "learning_rate=1e-3", "max_length=24"]
    wanted = read_config(
        None, [*fixed, *settings], model="stories260K", task=str(path), strategy="bot50", out=str(tmp_path / "run")
    )
    return train(wanted)


TRAINS = ["adafactor", "adagrad", "rmsprop", "adamw_torch", "adamw_8bit", "lion_32bit", "ademamix"]


@pytest.mark.parametrize("optim", TRAINS)
def test_optimizers_of_transformers_train_and_their_state_is_predicted(
    tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    assert optim in optim_names()
    if optim in ("adamw_8bit", "lion_32bit", "ademamix"):
        pytest.importorskip("bitsandbytes")
    record = _run(tmp_path, models_dir, monkeypatch, f"optim={optim}", "max_steps=4", "save_steps=2")
    assert record.measured is not None and record.measured.steps == 4
    per_parameter = record.predicted["memory_bytes"]["optimizer"] / record.trainable_parameters
    expected = {"adafactor": 0.1, "adamw_torch": 8, "adamw_8bit": 2, "ademamix": 12}.get(optim, 4)
    assert per_parameter == pytest.approx(expected, rel=0.3, abs=0.2)
