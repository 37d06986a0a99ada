"""LoRA: which matrices it goes beside, that it starts as the base model, and that PEFT can merge it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from architectures import tiny
from frostline.adapters import adapter_names, adapters_in, add_adapters, added_parameters, merge_adapters
from frostline.anatomy import Anatomy, find_anatomy
from frostline.core.errors import UserError
from frostline.plan import BlockMode, Frozen, Full, Lora, Plan
from tolerances import outputs as near

FAMILIES = ["llama", "phi", "gpt2", "gpt_neox", "opt", "mixtral", "bert", "distilbert", "t5"]


def lora_plan(anatomy: Anatomy, **options: object) -> Plan:
    return Plan(blocks=tuple(Lora(**options) for _ in anatomy.blocks))


def mixed_plan(anatomy: Anatomy, *modes: BlockMode) -> Plan:
    return Plan(blocks=(*modes, *[Frozen()] * (len(anatomy.blocks) - len(modes))))


def outputs(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 15).reshape(2, 6)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **extra).logits


def add_lora(model: PreTrainedModel, plan: Plan, anatomy: Anatomy, seed: int = 0) -> PeftModel:
    (peft_model,) = add_adapters(model, plan, anatomy, seed)
    return peft_model


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What LoRA added to the model."""
    names = adapter_names(model)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if name in names}


def train_a_little(peft_model: PeftModel) -> None:
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)


def target_names(plan: Plan, anatomy: Anatomy) -> list[str]:
    return [name for kind, block in adapters_in(plan.blocks, anatomy) for name in kind.added(block, anatomy).branches]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["default", "attention", "feed_forward", "all"])
def test_starts_as_the_base_model_with_the_predicted_parameters(family: str, targets: str) -> None:
    model = tiny(family)
    anatomy = find_anatomy(model)
    plan = lora_plan(anatomy, targets=targets)
    if family == "mixtral" and targets == "feed_forward":
        with pytest.raises(UserError, match=r"block 0: .* matches nothing, the block has self_attn\.q_proj"):
            target_names(plan, anatomy)
        return
    before = outputs(model)
    peft_model = add_lora(model, plan, anatomy)
    assert torch.equal(outputs(model), before)
    added = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert added == sum(added_parameters(plan, anatomy)) > 0
    train_a_little(peft_model)
    assert not torch.equal(outputs(model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "phi", "gpt_neox"])
def test_default_targets_are_those_of_peft(family: str) -> None:
    plan = lora_plan(find_anatomy(tiny(family)))
    reference = get_peft_model(tiny(family), LoraConfig(fan_in_fan_out=family == "gpt2"))
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in reference.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(target_names(plan, find_anatomy(tiny(family)))) == adapted


def test_default_is_the_whole_attention_where_peft_does_not_know_the_family() -> None:
    anatomy = find_anatomy(tiny("distilbert"))
    names = target_names(mixed_plan(anatomy, Lora()), anatomy)
    assert [name.rpartition(".")[2] for name in names] == ["q_lin", "k_lin", "v_lin", "out_lin"]


def test_named_targets_are_matched_by_whole_path_pieces() -> None:
    anatomy = find_anatomy(tiny("llama"))
    for name in ("q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj"):
        plan = mixed_plan(anatomy, Lora(targets=(name,)))
        assert target_names(plan, anatomy) == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(UserError, match=r"block 0: lora target 'proj' matches nothing.*mlp\.down_proj"):
        target_names(mixed_plan(anatomy, Lora(targets=("q_proj", "proj"))), anatomy)
    with pytest.raises(UserError, match="empty"):
        target_names(mixed_plan(anatomy, Lora(targets=())), anatomy)


@pytest.mark.parametrize("name", ["mlp.gate", "experts.down_proj"])
def test_routers_and_fused_experts_cannot_be_named(name: str) -> None:
    anatomy = find_anatomy(tiny("mixtral"))
    with pytest.raises(UserError, match="several experts in one tensor"):
        target_names(mixed_plan(anatomy, Lora(targets=(name,))), anatomy)


def test_only_the_named_blocks_change_and_each_keeps_its_own_options() -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    modes = (Lora(r=4, alpha=8, dropout=0.0), Full(), Lora(r=2, alpha=6, dropout=0.25))
    add_lora(model, mixed_plan(anatomy, *modes), anatomy)
    found = {
        name: (module.r["default"], module.scaling["default"], getattr(module.lora_dropout["default"], "p", 0))
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert found == {
        "model.layers.0.self_attn.q_proj": (4, 2.0, 0),
        "model.layers.0.self_attn.v_proj": (4, 2.0, 0),
        "model.layers.2.self_attn.q_proj": (2, 3.0, 0.25),
        "model.layers.2.self_attn.v_proj": (2, 3.0, 0.25),
    }
    assert {name.split(".lora_")[0] for name in state(model)} == found.keys()


def test_a_plan_without_lora_leaves_the_model_alone() -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    names = [name for name, _ in model.named_modules()]
    assert add_adapters(model, mixed_plan(anatomy, Full()), anatomy, seed=0) == ()
    assert [name for name, _ in model.named_modules()] == names


def test_the_seed_alone_decides_the_start_and_the_global_random_state_is_untouched() -> None:
    def started(seed: int, noise: int) -> dict[str, torch.Tensor]:
        model = tiny("llama")
        anatomy = find_anatomy(model)
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        add_lora(model, lora_plan(anatomy), anatomy, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return state(model)

    first, again, other = started(0, noise=1), started(0, noise=2), started(1, noise=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [tensor for name, tensor in first.items() if "lora_A" in name]
    assert all(not torch.equal(a, b) for a, b in pairwise(drawn))
    assert not torch.equal(drawn[0], next(tensor for name, tensor in other.items() if "lora_A" in name))


def test_requires_grad_of_the_own_tensors_is_left_as_it_was() -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    add_lora(model, mixed_plan(anatomy, Lora()), anatomy)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trains if ".layers.0." in name)
    assert {name.split(".")[2] for name in trains} == {"0", "1"}


def test_adapters_are_float32_over_a_bfloat16_base() -> None:
    model = tiny("llama").to(torch.bfloat16)
    anatomy = find_anatomy(model)
    before = outputs(model)
    add_lora(model, lora_plan(anatomy), anatomy)
    assert {tensor.dtype for tensor in state(model).values()} == {torch.float32}
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_merged_is_the_trained_model_without_peft(family: str) -> None:
    model = tiny(family)
    names = [name for name, _ in model.named_parameters()]
    anatomy = find_anatomy(model)
    peft_model = add_lora(model, lora_plan(anatomy, targets="all"), anatomy)
    train_a_little(peft_model)
    trained = outputs(model)
    merged = merge_adapters((peft_model,))
    assert [name for name, _ in merged.named_parameters()] == names
    assert not any(type(module).__module__.startswith("peft") for module in merged.modules())
    torch.testing.assert_close(outputs(merged), trained, atol=near(trained), rtol=0)
    assert find_anatomy(merged) == anatomy


def test_what_is_saved_is_pefts_own_and_loads_without_frostline(tmp_path: Path) -> None:
    model = tiny("bert")
    anatomy = find_anatomy(model)
    peft_model = add_lora(model, lora_plan(anatomy, r=3), anatomy)
    train_a_little(peft_model)
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("bert"), tmp_path)
    assert loaded.peft_config["default"].peft_type == "LORA"
    assert torch.equal(outputs(loaded), outputs(model))


def test_gated_and_plain_low_rank_updates_stand_side_by_side() -> None:
    model = tiny("llama")
    anatomy, base = find_anatomy(model), outputs(model)
    made = add_adapters(model, mixed_plan(anatomy, Lora(gate=True), Lora(), Full()), anatomy, seed=0)
    assert [type(peft_model.peft_config["default"]).__name__ for peft_model in made] == ["HybridConfig", "LoraConfig"]
    assert torch.equal(outputs(model), base)
    names = state(model).keys()
    assert {name.split(".")[2] for name in names if "lora_" in name} == {"1"}
    assert {name.split(".")[2] for name in names if "hybrid_" in name} == {"0"}
    assert not torch.equal(
        *(
            value
            for name, value in state(model).items()
            if name.endswith(("q_proj.hybrid_parts.default.A", "q_proj.lora_A.default.weight"))
        )
    )
    with pytest.raises(
        UserError,
        match=r"^model\.layers\.0\..* cannot be merged: the gate of its LoRA depends on the input: .*nothing was",
    ):
        merge_adapters(made)
    assert state(model).keys() == names
