"""The prediction as a whole: from a config alone, as plain data, beside full fine-tuning."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from cost_cases import named_plans
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from architectures import ARCHITECTURES, tiny
from frostline.anatomy import find_anatomy, skeleton
from frostline.cost import Workload, full_plan, has_dropout, memory, predict


def test_needs_no_weights() -> None:
    config = ARCHITECTURES["llama"]()
    planned = find_anatomy(skeleton(config, AutoModelForCausalLM))
    loaded = find_anatomy(tiny("llama"))
    for plan in named_plans(loaded).values():
        assert predict(plan, planned, Workload()) == predict(plan, loaded, Workload())


def test_full_fine_tuning_is_the_yardstick() -> None:
    anatomy = find_anatomy(tiny("gpt2"))
    for workload in (
        Workload(),
        Workload(bf16=True, activation_checkpointing=True, per_device_train_batch_size=3, frozen_dtype="float16"),
    ):
        prediction = predict(full_plan(anatomy), anatomy, workload)
        assert (prediction.flops_ratio, prediction.run_flops_ratio, prediction.memory_ratio) == (1, 1, 1)
        assert prediction.trainable_parameters == prediction.total_parameters == anatomy.total_parameters


def test_the_yardstick_computes_everything_in_every_step() -> None:
    anatomy = find_anatomy(tiny("llama"))
    plan = named_plans(anatomy)["bot75"]
    plain = Workload(num_train_epochs=3)
    cheap = Workload(num_train_epochs=3, activation_cache=True, loss_positions=True, label_share=0.25)
    assert cheap.plain == Workload(num_train_epochs=3, label_share=0.25)
    whole, less = (predict(plan, anatomy, workload) for workload in (plain, cheap))
    assert less.flops_ratio < less.run_flops_ratio < whole.run_flops_ratio == pytest.approx(whole.flops_ratio)
    full = memory(full_plan(anatomy), anatomy, plain).peak
    assert (less.memory_ratio, whole.memory_ratio) == (less.memory.peak / full, whole.memory.peak / full)
    assert less.memory_ratio < whole.memory_ratio
    assert Workload.model_validate(less.assumes) == cheap


def test_document_is_plain_data_with_the_promised_keys() -> None:
    anatomy = find_anatomy(tiny("bert"))
    workload = Workload(rows=10, per_device_train_batch_size=2)
    plan = named_plans(anatomy)["bot50"]
    prediction = predict(plan, anatomy, workload)
    document = json.loads(json.dumps(prediction.document()))
    promised = {"flops_ratio", "run_flops_ratio", "time_ratio", "peak_memory_bytes", "memory_ratio"}
    assert promised <= document.keys()
    assert document["time_ratio"] is None
    assert 0 < document["flops_ratio"] < 1
    assert 0 < document["memory_ratio"] < 1
    assert document["peak_memory_bytes"] == memory(plan, anatomy, workload).peak
    assert document["memory_bytes"] == asdict(prediction.memory)
    assert Workload.model_validate_json(json.dumps(prediction.assumes)) == workload


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"per_device_train_batch_size": 0},
            {"length": -1},
            {"num_train_epochs": 0},
            {"bf16": "half"},
            {"optim_args": 3},
            {"lenght": 128},
        ),
        *({"label_share": 0}, {"label_share": 1.1}, {"stored_share": -0.1}, {"activation_cache": "auto"}),
    ],
)
def test_a_workload_is_validated(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Workload.model_validate(wrong)


def test_dropout_is_read_from_the_config() -> None:
    assert has_dropout(tiny("bert", dropout=0.1).config)
    assert has_dropout(tiny("gpt2", dropout=0.1).config)
    assert not has_dropout(tiny("bert").config)
    assert not has_dropout(tiny("llama").config)
