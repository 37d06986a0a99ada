"""Memory where frozen matrices are rounded, and where each parameter is stepped in the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from cost_cases import base16, measured, named_plans, small, training, whole_batch
from pydantic import ValidationError

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Workload, flow, memory, saved
from frostline.engine._in_backward import step_in_backward
from frostline.surgery import apply, quantize_frozen

WIDE = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 1024}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["bot50", "lora", "attention of the top"])
def test_rounded_matrices(name: str, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny("llama", **WIDE).bfloat16()
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    done = quantize_frozen(model, anatomy, bits)
    kept = sum(parameter.nbytes for parameter in model.parameters()) + done.bytes_after
    work = Workload(frozen_dtype="bfloat16", frozen_bits=bits)
    assert memory(plan, anatomy, work).weights == pytest.approx(kept, rel=1e-4)


def test_a_rounded_matrix_keeps_no_copy_for_backward() -> None:
    """Under autocast the copy of a float32 matrix is kept; a rounded one is made again."""
    anatomy = find_anatomy(small("llama"))
    step = flow(named_plans(anatomy)["lora"], anatomy)
    whole, rounded = (saved(step, Workload(bf16=True, frozen_bits=bits)).blocks[1] for bits in (None, 4))
    assert whole.activations == rounded.activations
    assert whole.weights - rounded.weights == 2 * sum(
        m.linear.in_features * m.linear.out_features for m in step.blocks[1].matrices
    )


def test_the_largest_rounded_matrix_is_made_whole() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["lora"]
    largest = 32 * 64
    for bits, bf16, each in ((4, False, 4), (8, False, 8), (4, True, 6), (None, True, 0)):
        assert memory(plan, anatomy, Workload(bf16=bf16, frozen_bits=bits)).gathered == each * largest


@pytest.mark.parametrize("name", ["all", "bot50"])
def test_stepped_in_backward_against_the_allocator(models_dir: Path, name: str) -> None:
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    batch = whole_batch(model, 2, 32)
    usual, optimizer = training(model, lambda: batch)
    usual()

    def step() -> None:
        with step_in_backward(optimizer):
            model(**batch).loss.backward()

    work = Workload(per_device_train_batch_size=2, length=32, optimizer_in_backward=True)
    found = memory(plan, anatomy, work)
    assert found.peak == pytest.approx(measured(model, step, optimizer), rel=0.02)
    assert found.peak < memory(plan, anatomy, work.plain).peak


def test_only_the_largest_gradient_is_there() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    work = Workload(optimizer_in_backward=True)
    assert memory(plans["bot50"], anatomy, work).gradients == 4 * 128 * 32  # the head's
    tied = find_anatomy(tiny("llama", tied=True))
    assert memory(named_plans(tied)["lora"], tied, work).gradients == 4 * 8 * 32  # A or B of a matrix
    whole = memory(named_plans(tied)["all"], tied, work).gradients
    assert whole == 2 * 4 * 128 * 32  # the embedding's own, beside what came from the head


@pytest.mark.parametrize("other", [{"gradient_accumulation_steps": 2}, {"devices": 2}])
def test_stepping_in_backward_goes_alone(other: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="optimizer_in_backward"):
        Workload(optimizer_in_backward=True, **other)


def test_a_tied_gradient_is_there_from_the_head_on(models_dir: Path) -> None:
    """Where activations are few, the peak comes on the way back, with the embedding's gradient already there."""
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)["all"]
    apply(plan, model)
    batch = whole_batch(model, 1, 16)
    step, optimizer = training(model, lambda: batch)
    predicted = memory(plan, anatomy, Workload(per_device_train_batch_size=1, length=16)).peak
    assert predicted == pytest.approx(measured(model, step, optimizer), rel=0.02)
