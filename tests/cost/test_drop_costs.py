"""The expected cost of steps in which blocks or adapters are left out at random."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cost_cases import counted, small

from frostline.anatomy import find_anatomy
from frostline.cost import Speed, Workload, memory, predict, step_flops, step_seconds
from frostline.plan import AdapterDrop, Forward, Frozen, Full, LayerDrop, Lora, Plan

WORK = Workload(per_device_train_batch_size=2, length=12)
SPEED = Speed(
    forward=1e-9, input_gradient=2e-9, weight_gradient=3e-9, lora=1e-8, head=1e-9, embeddings=0, parameter=0, batch=0.1
)
LORA = Lora(dropout=0.0)


def whole(p: float = 0.0, frozen: int = 0) -> Plan:
    blocks = (Frozen(),) * frozen + (Full(),) * (4 - frozen)
    ends: dict[str, Any] = {} if frozen else {"embeddings": Full()}
    return Plan(blocks=blocks, **ends, forward=Forward(layerdrop=LayerDrop(p=p)))


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_a_block_that_may_be_skipped_costs_what_is_expected_of_it(p: float) -> None:
    """In operations and time 1 - p, but that a pass without any block is drawn again."""
    anatomy = find_anatomy(small("llama"))
    share = (1 - p) / (1 - p**4)
    full, drops = step_flops(whole(), anatomy, WORK), step_flops(whole(p), anatomy, WORK)
    for own, expected in zip(drops.blocks, full.blocks, strict=True):
        assert own.total == pytest.approx(share * expected.total)
    assert (drops.head, drops.embeddings) == (full.head, full.embeddings)
    spent = [step_seconds(plan, anatomy, WORK, SPEED) for plan in (whole(), whole(p))]
    blocks = [1e-9 * b.forward + 2e-9 * b.input_gradient + 3e-9 * b.weight_gradient for b in full.blocks]
    assert spent[0] - spent[1] == pytest.approx((1 - share) * sum(blocks))
    assert memory(whole(p), anatomy, WORK) == memory(whole(), anatomy, WORK)


def test_it_is_the_mean_over_all_draws_of_what_torch_counts() -> None:
    """Every set of skipped blocks by its probability, but that of all blocks."""
    p, anatomy = 0.3, find_anatomy(small("llama"))
    each = counted(small("llama"), whole(), 2, 12)
    block = step_flops(whole(), anatomy, WORK).blocks[1].total
    expected = certain = 0.0
    for gone in itertools.product([False, True], repeat=4):
        if not all(gone):
            chance = p ** sum(gone) * (1 - p) ** (4 - sum(gone))
            certain += chance
            expected += chance * (each - block * sum(gone))
    assert step_flops(whole(p), anatomy, WORK).total == pytest.approx(expected / certain, rel=0.001)


def test_frozen_blocks_and_those_that_others_read_always_run() -> None:
    anatomy = find_anatomy(small("llama"))
    plain, drops = (step_flops(whole(p, frozen=2), anatomy, WORK) for p in (0.0, 0.5))
    shares = [own.total / full.total for own, full in zip(drops.blocks, plain.blocks, strict=True)]
    assert shares == pytest.approx([1, 1, 2 / 3, 2 / 3])
    anatomy = find_anatomy(small("t5"))
    found = []
    for p in (0.0, 0.5):
        plan = Plan(embeddings=Full(), blocks=(Full(),) * 7, forward=Forward(layerdrop=LayerDrop(p=p)))
        found.append(step_flops(plan, anatomy, WORK))
    shares = [own.total / full.total for own, full in zip(found[1].blocks, found[0].blocks, strict=True)]
    assert shares == pytest.approx([1, 0.5, 0.5, 0.5, 1, 0.5, 0.5])


def test_robust_adapterdrop_costs_the_mean_of_its_plans() -> None:
    anatomy = find_anatomy(small("llama"))
    robust = Plan(
        blocks=(LORA,) * 4, final_norm=Frozen(), head=Frozen(), forward=Forward(adapterdrop=AdapterDrop(robust=True))
    )
    plans = [
        robust.model_copy(update={"blocks": (Frozen(),) * n + (LORA,) * (4 - n), "forward": Forward()})
        for n in range(4)
    ]
    operations = [step_flops(plan, anatomy, WORK).total for plan in plans]
    assert operations == pytest.approx([counted(small("llama"), plan, 2, 12) for plan in plans], rel=0.001)
    assert step_flops(robust, anatomy, WORK).total == pytest.approx(sum(operations) / 4)
    seconds = [step_seconds(plan, anatomy, WORK, SPEED) for plan in plans]
    assert step_seconds(robust, anatomy, WORK, SPEED) == pytest.approx(sum(seconds) / 4)
    assert memory(robust, anatomy, WORK) == memory(plans[0], anatomy, WORK)


def test_a_cache_serves_the_bottom_that_no_draw_changes() -> None:
    anatomy = find_anatomy(small("llama"))
    blocks = (Frozen(), Frozen(), LORA, LORA)
    plan = Plan(
        blocks=blocks, final_norm=Frozen(), head=Frozen(), forward=Forward(adapterdrop=AdapterDrop(robust=True))
    )
    cached = step_flops(plan, anatomy, WORK.model_copy(update={"activation_cache": True}))
    assert [work.total > 0 for work in cached.blocks] == [False, False, True, True]
    assert predict(plan, anatomy, WORK).flops_ratio < predict(whole(), anatomy, WORK).flops_ratio
