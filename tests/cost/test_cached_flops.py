"""Operations with an activation cache: a step is one of the model without its bottom, the bottom runs once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cost_cases import base16, counted, minilm, named_plans, small, whole_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from frostline.anatomy import find_anatomy
from frostline.cost import Flops, Workload, bottom_flops, caching_flops, flow, run_flops, run_flops_ratio, step_flops
from frostline.plan import Frozen, Full, Plan

FAMILIES = [
    *("llama", "gemma2", "gpt2", "gpt_neox", "gptj", "minicpm3", "mixtral", "opt", "phi3"),
    *("bert", "distilbert", "modernbert"),
]


def forward_flops(model: PreTrainedModel, batch: int, length: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**whole_batch(model, batch, length))
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_the_top_alone(family: str) -> None:
    anatomy = find_anatomy(small(family))
    cached = Workload(per_device_train_batch_size=2, length=12, activation_cache=True)
    for name in ("bot25", "bot50", "bot75", "lora on all of the top", "feed-forward of the top", "head"):
        plan = named_plans(anatomy)[name]
        boundary = plan.boundary
        step = step_flops(plan, anatomy, cached)
        assert step.blocks[:boundary] == (Flops(),) * boundary
        assert step.total == pytest.approx(counted(small(family), plan, 2, 12, without=boundary), rel=0.001), name


@pytest.mark.parametrize(("make", "count"), [(base16, 12), (minilm, 5)])
def test_real_models(models_dir: Path, make: Callable[[Path], PreTrainedModel], count: int) -> None:
    anatomy = find_anatomy(make(models_dir))
    modes = (*[Frozen()] * count, *[Full()] * (len(anatomy.blocks) - count))
    plan = Plan(blocks=modes, head=Frozen() if anatomy.tied else Full())
    cached = Workload(rows=10, per_device_train_batch_size=2, length=32, activation_cache=True)
    model = make(models_dir)
    whole = forward_flops(model, 2, 32)
    step = counted(model, plan, 2, 32, without=count)
    assert step_flops(plan, anatomy, cached).total == pytest.approx(step, rel=0.001)
    assert caching_flops(plan, anatomy, cached) == pytest.approx(5 * (whole - forward_flops(model, 2, 32)), rel=0.001)


def test_embeddings_that_multiply_run_with_the_bottom() -> None:
    model = small("opt")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "word_embed_proj_dim": 16}))
    model.set_attn_implementation("eager")
    anatomy = find_anatomy(model)
    assert anatomy.embedding_linears
    plan = named_plans(anatomy)["bot50"]
    plain, cached = (
        Workload(rows=2, per_device_train_batch_size=2, length=12),
        Workload(rows=2, per_device_train_batch_size=2, length=12, activation_cache=True),
    )
    assert step_flops(plan, anatomy, plain).embeddings.forward == 2 * 2 * 12 * 16 * 32
    assert step_flops(plan, anatomy, cached).embeddings == Flops()
    below = step_flops(plan, anatomy, plain)
    assert caching_flops(plan, anatomy, cached) == below.embeddings.forward + sum(b.forward for b in below.blocks[:2])


def test_the_caching_pass_takes_each_row_that_is_not_stored_once() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["bot50"]
    plain = Workload(rows=100, per_device_train_batch_size=8, num_train_epochs=3)
    below = sum(block.total for block in step_flops(plan, anatomy, plain).blocks[:2])
    assert bottom_flops(plan, anatomy, plain) == pytest.approx(below * 100 / 8)
    assert caching_flops(plan, anatomy, plain) == 0
    for stored in (0.0, 0.25, 1.0):
        cached = Workload(
            rows=100, per_device_train_batch_size=8, num_train_epochs=3, activation_cache=True, stored_share=stored
        )
        caching_pass = caching_flops(plan, anatomy, cached)
        assert caching_pass == pytest.approx((1 - stored) * below * 100 / 8)
        step = step_flops(plan, anatomy, cached).total
        assert run_flops(plan, anatomy, cached) == pytest.approx(caching_pass + step * 100 * 3 / 8)
        spared = run_flops(plan, anatomy, plain) - run_flops(plan, anatomy, cached)
        assert spared == pytest.approx((3 - (1 - stored)) * below * 100 / 8)


def test_ratios_are_to_full_fine_tuning_without_a_store() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    once, cached = Workload(), Workload(activation_cache=True, stored_share=0.5, loss_positions=True, label_share=0.5)
    assert run_flops_ratio(plans["bot50"], anatomy, Workload(activation_cache=True)) == pytest.approx(
        run_flops_ratio(plans["bot50"], anatomy, once)  # at one epoch nothing is spared
    )
    full = run_flops(plans["all"], anatomy, once)
    assert run_flops_ratio(plans["bot50"], anatomy, cached) == run_flops(plans["bot50"], anatomy, cached) / full


@pytest.mark.parametrize("name", ["all", "top50", "int50"])
def test_without_a_bottom_a_store_changes_nothing(name: str) -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)[name]
    plain, cached = Workload(), Workload(activation_cache=True)
    assert flow(plan, anatomy).bottom == 0
    assert step_flops(plan, anatomy, cached) == step_flops(plan, anatomy, plain)
    assert run_flops(plan, anatomy, cached) == run_flops(plan, anatomy, plain)


def test_t5s_first_blocks_run_on_for_their_position_table() -> None:
    anatomy = find_anatomy(small("t5"))
    plan = Plan(blocks=(*[Frozen()] * 6, Full()), final_norm=Frozen(), head=Frozen())
    plain, cached = Workload(label_tokens=16), Workload(label_tokens=16, activation_cache=True)
    before, after = step_flops(plan, anatomy, plain), step_flops(plan, anatomy, cached)
    ran = [block.total > 0 for block in after.blocks]
    assert ran == [True, False, False, False, True, False, True]
    assert (after.blocks[0], after.blocks[4], after.blocks[6]) == (before.blocks[0], before.blocks[4], before.blocks[6])
    assert caching_flops(plan, anatomy, cached) == pytest.approx(
        sum(block.forward for block in before.blocks[:6]) * cached.rows / cached.per_device_train_batch_size
    )


def test_a_trained_norm_at_an_encoders_end_lifts_no_decoder_block_into_the_bottom() -> None:
    anatomy = find_anatomy(small("t5"))
    blocks = (*[Frozen()] * 6, Full())
    assert flow(Plan(blocks=blocks, final_norm=Full(), head=Frozen()), anatomy).bottom == 4
    assert flow(Plan(blocks=blocks, final_norm=Frozen(), head=Frozen()), anatomy).bottom == 6
