"""Predicted operations against torch's own counter, which sees every matrix product of a real step."""

from __future__ import annotations

from pathlib import Path

import pytest
from cost_cases import base16, counted, minilm, named_plans, small

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Flops, Workload, flops_ratio, full_plan, run_flops, run_flops_ratio, step_flops
from grids import slow_but

PAPER = ["all", "bot25", "bot50", "bot75", "top50", "int50", "lora"]
FAMILIES = [
    *("llama", "gemma2", "gpt2", "gpt_neox", "gptj", "minicpm3", "mixtral", "olmo2", "opt", "phi", "phi3"),
    *("qwen3_moe", "bert", "distilbert", "modernbert", "t5"),
]


@pytest.mark.parametrize("name", slow_but(["bot50", "lora"], PAPER))
def test_base16(models_dir: Path, name: str) -> None:
    model = base16(models_dir)
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    predicted = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=64))
    assert predicted.total == pytest.approx(counted(model, plan, 2, 64), rel=0.001)


@pytest.mark.parametrize("name", ["all", "bot50", "top50", "lora"])
def test_minilm(models_dir: Path, name: str) -> None:
    model = minilm(models_dir)
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    predicted = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=32))
    assert predicted.total == pytest.approx(counted(model, plan, 2, 32), rel=0.001)


@pytest.mark.parametrize("family", slow_but(["llama", "mixtral", "t5"], FAMILIES))
def test_every_family_and_plan(family: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, plan in named_plans(anatomy).items():
        predicted = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=12)).total
        assert predicted == pytest.approx(counted(small(family), plan, 2, 12), rel=0.001), name


def test_a_decoder_classifier_scores_every_token() -> None:
    model = tiny("llama", "classification")
    model.set_attn_implementation("eager")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)["bot50"]
    predicted = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=12)).total
    assert predicted == pytest.approx(counted(model, plan, 2, 12), rel=0.001)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("name", ["all", "bot50"])
def test_checkpointing_computes_trained_blocks_twice(family: str, name: str) -> None:
    anatomy = find_anatomy(small(family))
    plan = named_plans(anatomy)[name]
    predicted = step_flops(
        plan, anatomy, Workload(per_device_train_batch_size=2, length=12, activation_checkpointing=True)
    ).total
    assert predicted == pytest.approx(counted(small(family), plan, 2, 12, checkpointing=True), rel=0.001)


def test_parts_follow_the_boundary() -> None:
    anatomy = find_anatomy(small("llama"))
    n, length = 32 * 128, 128
    matrices = 2 * n * sum(linear.in_features * linear.out_features for linear in anatomy.blocks[0].linears)
    products = 2 * (2 * n * length * anatomy.hidden_size)
    head = 2 * n * anatomy.hidden_size * anatomy.vocab_size
    below = Flops(matrices + products)
    trained = Flops(matrices + products, matrices + 2 * products, matrices)
    step = step_flops(named_plans(anatomy)["bot50"], anatomy, Workload(per_device_train_batch_size=32, length=length))
    assert step.blocks == (below, below, trained, trained)
    assert (step.embeddings, step.head) == (Flops(), Flops(head, head, head))
    assert step.total == 2 * below.total + 2 * trained.total + 3 * head


def test_longer_targets_cost_only_the_decoder() -> None:
    anatomy = find_anatomy(small("t5"))
    short, long = (step_flops(full_plan(anatomy), anatomy, Workload(length=8, label_tokens=n)) for n in (4, 8))
    assert short.blocks[:4] == long.blocks[:4]
    assert all(a.total < b.total for a, b in zip(short.blocks[4:], long.blocks[4:], strict=True))


def test_ratios() -> None:
    anatomy = find_anatomy(small("llama"))
    workload = Workload(rows=100, per_device_train_batch_size=8, num_train_epochs=3)
    plans = named_plans(anatomy)
    assert flops_ratio(plans["all"], anatomy, workload) == 1
    ratios = [flops_ratio(plans[name], anatomy, workload) for name in ("all", "bot25", "bot50", "bot75", "head")]
    assert ratios == sorted(ratios, reverse=True)
    assert run_flops_ratio(plans["bot50"], anatomy, workload) == pytest.approx(ratios[2])
    step = step_flops(plans["bot50"], anatomy, workload).total
    assert run_flops(plans["bot50"], anatomy, workload) == pytest.approx(step * 100 * 3 / 8)
