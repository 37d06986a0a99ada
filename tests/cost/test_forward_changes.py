"""A layered loss and a residual interaction: operations and memory against the model that trains so."""

from __future__ import annotations

import pytest
from cost_cases import counted, measured, named_plans, small, training, whole_batch

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Flops, Workload, flow, memory, step_flops, trainable_parameters
from frostline.plan import Forward, Frozen, Full, Partial, Plan, Residual
from frostline.surgery import apply
from grids import slow_but

BATCH, LENGTH = 3, 16
WORK = Workload(per_device_train_batch_size=BATCH, length=LENGTH)

WEIGHTS = {
    "one more, above the boundary": (0.0, 0.0, 0.5, 1.0),
    "below the boundary too": (0.25, 0.25, 0.0, 0.5),
    "not the last": (0.0, 0.0, 1.0, 0.0),
}


def layered(plan: Plan, weights: tuple[float, ...]) -> Plan:
    return plan.model_copy(update={"forward": Forward(loss_weights=weights)})


@pytest.mark.parametrize("family", slow_but(["llama"], ["llama", "gpt2", "bert"]))
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_operations_of_a_layered_loss(family: str, weights: tuple[float, ...]) -> None:
    anatomy = find_anatomy(small(family))
    for name in ("all", "bot50", "lora", "head", "top50"):
        plan = named_plans(anatomy).get(name)
        if plan is None or (name not in ("head", "top50") and weights[-1] == 0):
            continue  # a trained block above all weights is refused
        plan = layered(plan, weights)
        predicted = step_flops(plan, anatomy, WORK).total
        assert predicted == pytest.approx(counted(small(family), plan, BATCH, LENGTH), rel=0.001), name


def test_a_reading_below_the_boundary_stops_at_the_head() -> None:
    anatomy = find_anatomy(small("llama"))
    plain = named_plans(anatomy)["bot50"]
    plan = layered(plain, (1.0, 0.0, 0.0, 1.0)).model_copy(update={"final_norm": Frozen()})
    once, twice = (step_flops(each, anatomy, WORK) for each in (plain, plan))
    assert twice.blocks == once.blocks
    scores = 2 * BATCH * LENGTH * 32 * 128
    assert once.head == Flops(scores, scores, scores)
    assert twice.head == Flops(2 * scores, scores, 2 * scores)
    assert flow(plan, anatomy).bottom == 2


def test_nothing_above_the_last_weight_is_differentiated() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = layered(named_plans(anatomy)["top50"], (0.0, 1.0, 0.0, 0.0))
    step = step_flops(plan, anatomy, WORK)
    assert [block.input_gradient > 0 for block in step.blocks] == [True, True, False, False]
    scores = 2 * BATCH * LENGTH * 32 * 128
    assert step.head == Flops(2 * scores, scores, scores)


def test_logits_of_every_reading_stay_until_backward() -> None:
    anatomy = find_anatomy(small("llama"))
    plain = named_plans(anatomy)["bot50"]
    logits = 4 * BATCH * LENGTH * 128
    assert memory(plain, anatomy, WORK).logits == 3 * logits
    assert memory(layered(plain, (0.0, 1.0, 1.0, 1.0)), anatomy, WORK).logits == 5 * logits
    chunks = WORK.model_copy(update={"loss_positions": True})
    assert memory(layered(plain, (0.0, 1.0, 1.0, 1.0)), anatomy, chunks).logits == 3 * logits


@pytest.mark.parametrize(
    "forward",
    [Forward(loss_weights=(0.0, 0.5, 0.5, 1.0)), Forward(residual=Residual(alpha=0.1, span=2))],
    ids=["layered", "residual"],
)
@pytest.mark.parametrize("name", ["all", "bot50", "lora"])
def test_memory_against_the_allocator(name: str, forward: Forward) -> None:
    def wide() -> object:
        model = tiny("llama", hidden_size=64, intermediate_size=192, vocab_size=512)
        model.set_attn_implementation("sdpa")
        return model

    model = wide()
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name].model_copy(update={"forward": forward})
    apply(plan, model)
    batch = whole_batch(model, 8, 64)
    step, optimizer = training(model, lambda: batch)
    predicted = memory(plan, anatomy, Workload(per_device_train_batch_size=8, length=64)).peak
    assert predicted == pytest.approx(measured(model, step, optimizer), rel=0.05)


def test_a_frozen_bottom_keeps_what_is_added_later() -> None:
    anatomy = find_anatomy(small("llama"))
    frozen = Plan(blocks=(Frozen(),) * 4, final_norm=Frozen())
    reads = Workload(per_device_train_batch_size=64, length=64, loss_positions=True, label_share=0.001)
    plain, kept = (
        memory(frozen.model_copy(update={"forward": Forward(residual=Residual(alpha=alpha, span=3))}), anatomy, reads)
        for alpha in (0.0, 0.1)
    )
    assert kept.peak - plain.peak == 3 * 64 * 64 * 32 * 4


def test_modules_that_train_by_name() -> None:
    anatomy = find_anatomy(small("llama"))
    chosen = Plan(blocks=(*[Frozen()] * 3, Partial(train=("mlp.down_proj",))), final_norm=Frozen(), head=Frozen())
    assert trainable_parameters(chosen, anatomy) == 64 * 32
    step = step_flops(chosen, anatomy, WORK)
    assert step.total == pytest.approx(counted(small("llama"), chosen, BATCH, LENGTH), rel=0.001)
    assert step.blocks[3].weight_gradient == 2 * BATCH * LENGTH * 64 * 32
    full = Plan(blocks=(*[Frozen()] * 3, Full()), final_norm=Frozen(), head=Frozen())
    assert memory(chosen, anatomy, WORK).gradients < memory(full, anatomy, WORK).gradients
