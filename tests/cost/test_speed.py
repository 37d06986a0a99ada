"""Seconds from measured speeds: by hand arithmetic, and back from times to the speed that made them."""

from __future__ import annotations

import pytest
from cost_cases import named_plans, small
from pydantic import ValidationError

from architectures import tiny
from frostline.anatomy import Anatomy, find_anatomy
from frostline.cost import (
    Speed,
    StepTimes,
    Workload,
    bottom_flops,
    fit_speed,
    predict,
    run_seconds,
    step_flops,
    step_seconds,
    trainable_parameters,
)
from frostline.plan import Frozen, Full, Lora, Plan

NOTHING = dict.fromkeys(Speed.model_fields, 0.0)
SPEED = Speed(
    forward=1.0e-11,
    input_gradient=1.2e-11,
    weight_gradient=1.5e-11,
    lora=2.0e-8,
    head=3.0e-11,
    embeddings=1.0e-9,
    parameter=2.0e-9,
    batch=2.0e-3,
)
WORK = Workload(per_device_train_batch_size=4, length=16)


@pytest.fixture
def llama() -> Anatomy:
    return find_anatomy(small("llama"))


def test_each_speed_multiplies_its_own_work(llama: Anatomy) -> None:
    plan = named_plans(llama)["bot50"]
    flops = step_flops(plan, llama, WORK)

    def only(**speed: float) -> float:
        return step_seconds(plan, llama, WORK, Speed(**NOTHING | speed))

    assert only(forward=1) == sum(block.forward for block in flops.blocks)
    assert only(input_gradient=1) == sum(block.input_gradient for block in flops.blocks) > 0
    assert only(weight_gradient=1) == sum(block.weight_gradient for block in flops.blocks) > 0
    assert only(head=1) == flops.head.total > 0
    assert only(parameter=1) == trainable_parameters(plan, llama)
    assert only(batch=1) == 1
    assert only(embeddings=1) == only(lora=1) == 0


def test_embeddings_cost_where_they_train(llama: Anatomy) -> None:
    speed = Speed(**NOTHING | {"embeddings": 1.0})
    assert step_seconds(named_plans(llama)["all"], llama, WORK, speed) == 128 * 32


def test_lora_counts_what_its_matrices_read_and_make() -> None:
    """Llama's default targets are query (32 -> 32) and value (32 -> 2 heads of 8), of 4 blocks and 4 x 16 tokens."""
    anatomy = find_anatomy(tiny("llama"))
    plan = Plan(blocks=(Lora(),) * 4, head=Full())
    speed = Speed(**NOTHING | {"lora": 1.0})
    assert step_seconds(plan, anatomy, WORK, speed) == 4 * 4 * 16 * ((32 + 32) + (32 + 16))


def test_accumulated_batches_step_once(llama: Anatomy) -> None:
    plan = named_plans(llama)["bot50"]
    four = WORK.model_copy(update={"gradient_accumulation_steps": 4})
    step = SPEED.parameter * trainable_parameters(plan, llama)
    batch = step_seconds(plan, llama, WORK, SPEED) - step
    assert step_seconds(plan, llama, four, SPEED) == pytest.approx(4 * batch + step)
    sharded = WORK.model_copy(update={"devices": 4})
    assert step_seconds(plan, llama, sharded, SPEED) == pytest.approx(batch + step / 4)


def test_a_run_is_its_caching_pass_and_its_steps(llama: Anatomy) -> None:
    plan = named_plans(llama)["bot50"]
    work = Workload(
        rows=100,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        length=16,
        gradient_accumulation_steps=5,
        activation_cache=True,
        stored_share=0.25,
    )
    a_row = bottom_flops(plan, llama, work) / 100 * SPEED.forward
    assert a_row > 0
    step = step_seconds(plan, llama, work, SPEED)
    a_batch = (step - SPEED.parameter * trainable_parameters(plan, llama)) / 5
    check = 8 * a_row + 3 * a_batch  # four rows with the bottom, with its states again, and from the store
    assert run_seconds(plan, llama, work, SPEED) == pytest.approx(75 * a_row + check + 15 * step)
    plain = work.model_copy(update={"activation_cache": False})
    assert run_seconds(plan, llama, plain, SPEED) == 15 * step_seconds(plan, llama, plain, SPEED)


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("loss_positions", [False, True])
def test_the_speed_is_found_again_in_the_times_it_makes(name: str, loss_positions: bool) -> None:
    anatomy = find_anatomy(tiny(name, num_hidden_layers=6))
    work = WORK.model_copy(update={"loss_positions": loss_positions, "label_share": 0.25})
    plan = Plan(blocks=(Frozen(), Full(), Frozen(), Lora(), Frozen(), Full()), head=Full())
    flops = step_flops(plan, anatomy, work)
    block = [
        SPEED.forward * work.forward
        + SPEED.input_gradient * work.input_gradient
        + SPEED.weight_gradient * work.weight_gradient
        for work in flops.blocks
    ]
    adapted = step_seconds(plan, anatomy, work, Speed(**NOTHING | {"lora": SPEED.lora}))
    block[3] += adapted
    times = StepTimes(
        blocks=block[:-1],
        top=block[-1] + SPEED.head * flops.head.total,
        optimizer=SPEED.parameter * trainable_parameters(plan, anatomy),
        rest=SPEED.batch,
        embeddings=SPEED.embeddings,
    )
    found = fit_speed(plan, anatomy, work, times)
    assert found.model_dump() == pytest.approx(SPEED.model_dump())
    whole = sum(times.blocks) + times.top + times.optimizer + times.rest
    assert step_seconds(plan, anatomy, work, found) == pytest.approx(whole)


def test_noise_makes_no_negative_speed() -> None:
    """A frozen block that happened to take longer than one that trains."""
    anatomy = find_anatomy(tiny("llama"))
    plan = Plan(blocks=(Frozen(), Full(), Frozen(), Full()), head=Full())
    found = fit_speed(plan, anatomy, WORK, StepTimes((2.0, 1.0, 1.0), top=0.1, optimizer=0.0, rest=0.0))
    assert found.forward > 0
    assert found.input_gradient == found.weight_gradient == found.head == found.lora == 0


def test_a_prediction_has_times_only_with_a_speed(llama: Anatomy) -> None:
    plans = named_plans(llama)
    without = predict(plans["bot50"], llama, WORK)
    assert without.run_seconds is without.time_ratio is None
    assert without.document()["run_seconds"] is without.document()["time_ratio"] is None
    full, half = (predict(plans[name], llama, WORK, SPEED) for name in ("all", "bot50"))
    assert full.run_seconds == run_seconds(plans["all"], llama, WORK, SPEED)
    assert full.time_ratio == 1
    assert half.run_seconds is not None and full.run_seconds is not None
    assert half.time_ratio == pytest.approx(half.run_seconds / full.run_seconds)
    assert 0 < half.time_ratio < 1


def test_the_yardstick_is_full_fine_tuning_without_a_store(llama: Anatomy) -> None:
    plan = named_plans(llama)["bot50"]
    cached = Workload(
        num_train_epochs=3,
        per_device_train_batch_size=4,
        length=16,
        activation_cache=True,
        loss_positions=True,
        label_share=0.25,
    )
    full = run_seconds(named_plans(llama)["all"], llama, cached.plain, SPEED)
    found = predict(plan, llama, cached, SPEED)
    assert found.time_ratio == pytest.approx(run_seconds(plan, llama, cached, SPEED) / full)


def test_a_speed_is_plain_data() -> None:
    assert Speed.model_validate_json(SPEED.model_dump_json()) == SPEED
    with pytest.raises(ValidationError):
        Speed(**NOTHING | {"forward": -1.0})
    with pytest.raises(ValidationError):
        Speed.model_validate(NOTHING | {"backward": 1.0})
