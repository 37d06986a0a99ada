"""Costs of what blocks add: exact sizes, operations as torch counts them, activations as autograd keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from cost_cases import base16, counted, measured, small, training, whole_batch
from test_activations import kept, predicted

from frostline.anatomy import find_anatomy
from frostline.cost import Speed, Workload, memory, step_flops, step_seconds, total_parameters, trainable_parameters
from frostline.plan import BlockMode, Bottleneck, Frozen, Lora, Mixture, Peft, Plan, Prefix, Unipelt
from frostline.surgery import apply
from grids import grid, slow_but

MODES: Mapping[str, BlockMode] = {
    "gated lora": Lora(targets="down", gate=True),
    "gated lora without dropout": Lora(targets="all", gate=True, dropout=0.0),
    "prefix": Prefix(length=5),
    "prefix, gate on output": Prefix(length=5, gate="output"),
    "prefix without gate": Prefix(length=5, gate="none"),
    "parallel": Bottleneck(kind="parallel", bottleneck=16),
    "parallel with biases": Bottleneck(kind="parallel", bottleneck=16, bias=True, activation="gelu", dropout=0.1),
    "series": Bottleneck(kind="series", bottleneck=16),
    "unipelt": Unipelt(r=4, length=5, bottleneck=16),
    "series with dropout": Bottleneck(kind="series", bottleneck=16, activation="silu", dropout=0.1),
}
WAYS = [("sdpa", False), ("sdpa", True), ("eager", False), ("eager", True)]
MIXTURE = Mixture(experts=4, top_k=2, r=4)


def above(mode: BlockMode, depth: int) -> Plan:
    """The upper half of the blocks with `mode`."""
    return Plan(blocks=(Frozen(),) * (depth - depth // 2) + (mode,) * (depth // 2), final_norm=Frozen(), head=Frozen())


def hybrid(depth: int) -> Plan:
    """LoRA low, a prefix in the top quarter."""
    low = depth * 3 // 4
    modes = (Lora(alpha=16, targets="down", gate=True),) * low + (Prefix(length=20),) * (depth - low)
    return Plan(blocks=modes, final_norm=Frozen(), head=Frozen())


def modes_of(family: str) -> dict[str, BlockMode]:
    """Those that fit: a mixture needs a feed-forward that is one module, of one expert."""
    return dict(MODES) if family == "bert" else {**MODES, "mixture": MIXTURE}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "bert"])
def test_parameters_gradients_and_optimizer_are_exact(family: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, mode in modes_of(family).items():
        plan, model = above(mode, len(anatomy.blocks)), small(family)
        apply(plan, model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trainable_parameters(plan, anatomy) == trained > 0, name
        assert total_parameters(plan, anatomy) == sum(parameter.numel() for parameter in model.parameters()), name
        predicted = memory(plan, anatomy, Workload())
        assert predicted.weights == sum(p.numel() * p.element_size() for p in model.parameters()), name
        assert (predicted.gradients, predicted.optimizer) == (4 * trained, 8 * trained), name


@pytest.mark.parametrize("family", slow_but(["llama", "bert"], ["llama", "qwen3", "gpt2", "gpt_neox", "bert"]))
def test_operations_are_those_that_torch_counts(family: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, mode in modes_of(family).items():
        plan = above(mode, len(anatomy.blocks))
        expected = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=12)).total
        assert expected == pytest.approx(counted(small(family), plan, 2, 12), rel=0.001), name


@pytest.mark.parametrize(
    ("family", "attention", "bfloat16"),
    slow_but([("qwen3", "sdpa", True), ("gpt2", "eager", False)], grid(["llama", "qwen3", "gpt2", "bert"], WAYS)),
)
def test_activations_are_those_that_autograd_keeps(family: str, attention: str, bfloat16: bool) -> None:
    if family == "bert" and attention == "eager" and bfloat16:
        pytest.skip("its softmax is narrow, which the formulas leave out")
    anatomy = find_anatomy(small(family))
    for name, mode in modes_of(family).items():
        plan = above(mode, len(anatomy.blocks))
        found = kept(small(family, attention), plan, bfloat16)
        assert predicted(small(family, attention), plan, bfloat16, attention) == pytest.approx(found, rel=0.03), name


BASE16 = {
    "gated lora": Lora(targets="down", gate=True),
    "prefix": Prefix(length=20),
    "prefix without gate": Prefix(length=20, gate="none"),
    "parallel": Bottleneck(kind="parallel", bottleneck=64),
    "series": Bottleneck(kind="series", bottleneck=64),
    "mixture": Mixture(experts=4),
}


@pytest.mark.parametrize("name", slow_but(["series", "mixture", "hybrid"], [*BASE16, "hybrid"]))
def test_peak_against_the_allocator(models_dir: Path, name: str) -> None:
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = hybrid(16) if name == "hybrid" else above(BASE16[name], 16)
    apply(plan, model)
    step, optimizer = training(model, lambda: whole_batch(model, 4, 128))
    found = measured(model, step, optimizer)
    assert memory(plan, anatomy, Workload(per_device_train_batch_size=4, length=128)).peak == pytest.approx(
        found, rel=0.002
    )


PEFT = {
    "lora": Peft(method="lora", options={"r": 4}),
    "dora": Peft(method="dora", options={"r": 4}),
    "ia3": Peft(method="ia3"),
    "ln_tuning": Peft(method="ln_tuning"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_peft_by_name_is_exact_in_parameters(family: str, dtype: torch.dtype) -> None:
    anatomy = find_anatomy(small(family))
    for name, mode in PEFT.items():
        plan, model = above(mode, len(anatomy.blocks)), small(family).to(dtype)
        apply(plan, model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        assert trainable_parameters(plan, anatomy) == trained > 0, name
        expected = memory(plan, anatomy, Workload(frozen_dtype=str(dtype).removeprefix("torch.")))
        assert (expected.weights, expected.gradients) == (held, 4 * trained), name


def test_peft_by_name_is_roughly_right_in_operations() -> None:
    anatomy = find_anatomy(small("llama"))
    for name, mode in PEFT.items():
        plan = above(mode, len(anatomy.blocks))
        expected = step_flops(plan, anatomy, Workload(per_device_train_batch_size=2, length=12)).total
        within = 0.001 if name == "lora" else 0.1
        assert expected == pytest.approx(counted(small("llama"), plan, 2, 12), rel=within), name


def test_peft_by_name_is_roughly_right_in_activations() -> None:
    anatomy = find_anatomy(small("llama"))
    for name in ("lora", "ia3", "ln_tuning"):
        plan = above(PEFT[name], len(anatomy.blocks))
        found = kept(small("llama", "sdpa"), plan, False)
        assert predicted(small("llama", "sdpa"), plan, False, "sdpa") == pytest.approx(found, rel=0.2), name


@pytest.mark.parametrize(
    ("mode", "per_token"),
    [
        # Of a Llama 32 wide with a feed-forward of 64, 4 heads and 2 groups of width 8.
        (Lora(targets="down", gate=True), 2 * 64 + 32),
        (Bottleneck(kind="parallel", targets=("q_proj",)), 32 + 32),
        (Bottleneck(kind="series", targets=("v_proj",)), 16 + 16),
        (Prefix(length=5, gate="none"), 32 + 16 + 32),
        (Prefix(length=5), 32 + 16 + 32 + 32 + 4 * 4 * 5),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_the_speed_of_adapters_counts_what_they_read_and_make(mode: BlockMode, per_token: int) -> None:
    anatomy = find_anatomy(small("llama"))
    speed = Speed(**dict.fromkeys(Speed.model_fields, 0.0) | {"lora": 1.0})
    plan = above(mode, len(anatomy.blocks))
    assert (
        step_seconds(plan, anatomy, Workload(per_device_train_batch_size=4, length=16), speed) == 2 * 4 * 16 * per_token
    )
