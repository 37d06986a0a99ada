"""Peak memory: exact parts against the model's own tensors, the whole against a fresh process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from cost_cases import base16, named_plans, small, whole_batch

from frostline.anatomy import find_anatomy
from frostline.cost import Workload, memory
from frostline.engine import apply


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma"])
def test_weights_gradients_and_optimizer_are_exact(family: str, dtype: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, plan in named_plans(anatomy).items():
        model = small(family).to(getattr(torch, dtype))
        apply(plan, model)
        rows = [buffer for path, buffer in model.named_buffers() if path.endswith(".frozen")]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *rows))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        predicted = memory(plan, anatomy, Workload(frozen_dtype=dtype))
        assert predicted.weights == weights, name
        assert predicted.gradients == 4 * trained, name
        assert predicted.optimizer == 8 * trained, name


def test_sgd_has_no_state() -> None:
    anatomy = find_anatomy(small("llama"))
    assert memory(named_plans(anatomy)["all"], anatomy, Workload(optimizer="sgd")).optimizer == 0


def test_peak_is_the_largest_moment_not_the_sum() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    many, one = (memory(plan, anatomy, Workload(batch=batch, length=16)) for batch in (64, 1))
    assert many.peak == many.weights + many.optimizer + many.activations + many.logits
    assert one.peak < one.weights + one.optimizer + one.gradients + one.activations + one.logits
    assert one.peak >= one.weights + one.optimizer + one.gradients


def test_accumulated_gradients_stay() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    once, twice = (memory(plan, anatomy, Workload(accumulation=n)) for n in (1, 2))
    assert twice.peak == once.peak + once.gradients


def test_checkpointing_keeps_one_block_at_a_time() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    for name in ("all", "bot50"):
        plain, saving = (memory(plans[name], anatomy, Workload(checkpointing=flag)) for flag in (False, True))
        assert saving.activations < plain.activations
        assert saving.peak < plain.peak
    plain, saving = (memory(plans["head"], anatomy, Workload(checkpointing=flag)) for flag in (False, True))
    assert plain == saving


def test_less_trained_takes_less() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    peaks = [memory(plans[name], anatomy, Workload()).peak for name in ("all", "bot25", "bot50", "bot75", "head")]
    assert peaks == sorted(peaks, reverse=True)


def live_bytes_at_peak(step: Callable[[], None]) -> int:
    """The most that torch's allocator holds while `step` runs, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["all", "bot50", "lora", "head"])
def test_against_the_allocator(models_dir: Path, name: str, checkpointing: bool) -> None:
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        model(**whole_batch(model, 8, 128)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer's state is there from the first step on
    kept = [*model.parameters(), *(item for state in optimizer.state.values() for item in state.values())]
    measured = live_bytes_at_peak(step) + sum(tensor.numel() * tensor.element_size() for tensor in kept)
    predicted = memory(plan, anatomy, Workload(batch=8, length=128, checkpointing=checkpointing)).peak
    assert predicted == pytest.approx(measured, rel=0.05 if checkpointing else 0.002)
