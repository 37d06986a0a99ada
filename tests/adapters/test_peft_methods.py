"""PEFT's own methods by name: counts, starts, training, saving, merging, and AdaLoRA's ranks over a training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LNTuningConfig, LoraConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, TrainingArguments

from architectures import batch_for, tiny
from frostline.adapters import added_parameters
from frostline.adapters._peft_methods import REFUSED, methods
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_delta, save_delta
from frostline.core.errors import UserError
from frostline.core.seeding import derive_seed
from frostline.engine import Trainer
from frostline.plan import BlockMode, Frozen, Lora, Peft, Plan
from frostline.surgery import apply, to_plain
from grids import grid
from tolerances import after_sgd, outputs

MODELS = ["llama", "gpt2", "bert", "qwen3"]
SMALL = {
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "waveft": {"n_frequency": 100},
}
"""Options for the methods whose defaults need wider models."""
OFTEN = ["ia3", "dora", "adalora", "ln_tuning", "vera", "loha"]
ONLY_LINEAR = frozenset(
    {"beft", "boft", "c3a", "delora", "glora", "hra", "loha", "lokr", "miss", "oft", "peanut", "road"}
    | {"shira", "supertuning"}
)
"""Methods that PEFT cannot use on GPT-2's transposed matrices."""
ELSEWHERE = {"c3a", "fourierft"}
"""Methods that do not start as the base model."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:.*sparse CSR"),
]


def plan_of(*modes: BlockMode) -> Plan:
    return Plan(blocks=(*modes, *[Frozen()] * (4 - len(modes))), final_norm=Frozen(), head=Frozen())


def mode_of(method: str, **options: Any) -> Peft:
    return Peft(method=method, options=SMALL.get(method, {}) | options)


def twice(method: str, **options: Any) -> Plan:
    mode = mode_of(method, **options)
    return plan_of(Frozen(), mode, mode)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch_for(model)).logits


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**batch_for(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("method", "name"), grid(methods(), MODELS))
def test_counts_are_exact_and_most_start_as_the_base_model(name: str, method: str) -> None:
    model = tiny(name)
    plan = twice(method)
    if name == "gpt2" and method in ONLY_LINEAR:
        with pytest.raises(UserError, match=rf"^block 1: {method}: .*Conv1D"):
            added_parameters(plan, find_anatomy(model))
        return
    before = logits(model)
    apply(plan, model)
    counted = added_parameters(plan, find_anatomy(tiny(name)))
    for index, count in enumerate(counted):
        block = f"{find_anatomy(tiny(name)).blocks[index].name}."
        assert count == sum(p.numel() for path, p in trained(model).items() if path.startswith(block))
    assert sum(counted) == sum(parameter.numel() for parameter in trained(model).values()) > 0
    torch.testing.assert_close(logits(model), before, rtol=0, atol=outputs(before) if method not in ELSEWHERE else 10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", OFTEN)
def test_what_is_added_trains_and_nothing_else(name: str, method: str) -> None:
    if name == "gpt2" and method in ONLY_LINEAR:
        pytest.skip("PEFT cannot use it on transposed matrices")
    model = tiny(name)
    apply(twice(method), model)
    before = {path: tensor.detach().clone() for path, tensor in model.state_dict().items()}
    train(model)
    after, moving = model.state_dict(), set(trained(model))
    assert all(torch.equal(before[path], after[path]) != (path in moving) for path in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*OFTEN, "randlora", "shira", "fourierft"])
def test_a_delta_gives_the_model_back_and_it_merges(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    tiny("llama").to(dtype).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    apply(twice(method), base, seed=3)
    assert {parameter.dtype for parameter in trained(base).values()} == {torch.float32}
    train(base)
    expected = logits(base)
    save_delta(base, tmp_path / "run")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    load_delta(again, tmp_path / "run")
    assert torch.equal(logits(again), expected)
    if dtype == torch.float32:
        torch.testing.assert_close(logits(to_plain(again)), expected, rtol=0, atol=outputs(expected))


CONFIGS = {
    "ia3": lambda places: IA3Config(target_modules=places, feedforward_modules=[p for p in places if "down" in p]),
    "dora": lambda places: LoraConfig(target_modules=places, use_dora=True),
    "vera": lambda places: VeraConfig(target_modules=places),
    "ln_tuning": lambda places: LNTuningConfig(target_modules=places),
    "adalora": lambda places: AdaLoraConfig(target_modules=places, total_step=1),
}
PLACES = {
    "ia3": ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"),
    "ln_tuning": ("input_layernorm", "post_attention_layernorm"),
    "adalora": ("self_attn.q_proj", "self_attn.v_proj"),
}


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Unsupported layer type")
def test_peft_by_hand_makes_the_same_model(method: str) -> None:
    ours, theirs = tiny("llama"), tiny("llama")
    apply(twice(method), ours, seed=5)
    places = [f"model.layers.{i}.{p}" for i in (1, 2) for p in PLACES.get(method, PLACES["adalora"])]
    torch.manual_seed(derive_seed(5, f"{method}-001"))
    get_peft_model(theirs, CONFIGS[method](places), adapter_name=f"{method}-001")
    mine, made = trained(ours), trained(theirs)
    assert list(mine) == list(made)
    assert all(torch.equal(mine[path], made[path]) for path in mine)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
        model.eval()(**batch_for(model)).loss.backward()
        optimizer.step()
    assert torch.equal(logits(ours), logits(theirs))


def test_different_methods_stand_in_one_model(tmp_path: Path) -> None:
    modes = [Lora(), mode_of("dora", r=4), mode_of("adalora"), mode_of("ln_tuning")]
    model = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    before = logits(model)
    applied = apply(plan_of(*modes), model)
    assert torch.equal(logits(model), before)
    assert len(applied.peft_models) == 4
    assert sum(p.numel() for p in trained(model).values()) == sum(added_parameters(applied.plan, applied.anatomy))
    start = {path: parameter.detach().clone() for path, parameter in trained(model).items()}
    train(model)
    assert not any(torch.equal(start[path], parameter) for path, parameter in trained(model).items())
    expected = logits(model)
    assert not torch.equal(expected, before)
    with applied.peft_models[0].disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(logits(to_plain(model)), expected, rtol=0, atol=outputs(expected))


def test_blocks_of_other_options_are_other_adapters() -> None:
    model = tiny("llama")
    applied = apply(plan_of(mode_of("vera", r=4), mode_of("vera", r=8), mode_of("vera", r=4)), model)
    assert [m.active_adapter for m in applied.peft_models] == ["vera-000", "vera-001"]
    assert [len(m.base_model.targeted_module_names) for m in applied.peft_models] == [4, 2]


def test_ia3_scales_keys_values_and_what_leads_down() -> None:
    phi = find_anatomy(tiny("olmo2"))  # PEFT does not know the family
    model = tiny("olmo2")
    apply(twice("ia3"), model)
    assert phi.model_type == "olmo2"
    sizes = {path.split(".", 3)[3].partition(".ia3_l")[0]: len(p.flatten()) for path, p in trained(model).items()}
    assert sizes == {"self_attn.k_proj": 16, "self_attn.v_proj": 16, "mlp.down_proj": 64}


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ({"method": "ia4"}, "unknown adapter method 'ia4': did you mean 'ia3'?"),
        ({"method": "prefix_tuning"}, "cannot be used on single blocks: .*use mode: prefix"),
        ({"method": "vblora"}, "adapter method 'vblora' cannot be used on single blocks: its parameters belong to"),
        ({"method": "vera", "options": {"rank": 8}}, "unknown option of vera 'rank'"),
        ({"method": "dora", "options": {"layers_to_transform": [1]}}, "layers_to_transform: use the plan's blocks"),
        ({"method": "dora", "options": {"use_dora": False}}, "use_dora: use method: dora"),
        ({"method": "dora", "options": {"r": "eight"}}, "dora: options: r: .*integer"),
        ({"method": "dora", "options": {"r": 0}}, "dora: .*positive"),
        ({"method": "lora", "options": {"init_lora_weights": "pissa"}}, "pissa: it starts from a decomposition"),
        ({"method": "adalora", "options": {"target_r": 12}}, "target_r: 12: use a rank below init_r \\(12\\)"),
        ({"method": "adalora", "options": {"total_step": 9}}, "total_step: it follows from the length of the training"),
        ({"method": "ia3", "targets": ["x_proj"]}, "block 0: ia3 target 'x_proj' matches nothing, the block has self"),
        ({"method": "ln_tuning", "targets": ["norm1"]}, "block 0: ln_tuning targets: 'norm1' matches no norm, the"),
        ({"method": "ln_tuning", "targets": "attention"}, "this method trains norms: use default, all, or names"),
        ({"method": "c3a"}, "block 0: c3a: The block size should be a factor"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(mode: dict[str, Any], line: str) -> None:
    model = tiny("llama")
    before = set(model.state_dict())
    with pytest.raises(UserError, match=line) as raised:
        apply(plan_of(Peft.model_validate(mode)), model)
    assert "\n" not in str(raised.value)
    assert set(model.state_dict()) == before


def test_no_method_is_both_known_and_refused() -> None:
    assert not REFUSED.keys() & set(methods())


def test_without_a_bias_beft_is_not_merged() -> None:
    model = tiny("llama")
    apply(twice("beft"), model)
    with pytest.raises(UserError, match="cannot be merged: it has no bias to add BEFT's to"):
        to_plain(model)


# AdaLoRA over a training.


def rows(model: Any, count: int = 12) -> list[dict[str, torch.Tensor]]:
    batch = batch_for(model, batch=count)
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


def trainer(folder: Path, plan: Plan, **options: Any) -> Trainer:
    model = tiny("llama", seed=1)
    given: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    arguments = TrainingArguments(output_dir=str(folder), **given | options)
    return Trainer(model, arguments, plan=plan, train_dataset=rows(model), data_collator=collate)


RANKED = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2}


def test_ranks_fall_to_their_target(tmp_path: Path) -> None:
    run = trainer(tmp_path, twice("adalora", **RANKED), save_strategy="no")
    run.train()
    left = [int(p.count_nonzero()) for path, p in trained(run.model).items() if "lora_E" in path]
    assert sum(left) == 3 * 4
    pattern = run.applied.peft_models[0].base_model.peft_config["adalora-001"].rank_pattern
    assert sorted(sum(kept) for kept in pattern.values()) == sorted(left)


def test_killed_and_resumed_is_never_killed(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", twice("adalora", **RANKED), save_steps=3)
    whole.train()
    for stop in (3, 6):  # while ranks fall, and after
        resumed = trainer(tmp_path / "again", twice("adalora", **RANKED), save_strategy="no")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        expected = trained(whole.model)
        assert all(torch.equal(parameter, expected[path]) for path, parameter in trained(resumed.model).items())


def test_training_is_what_peft_does_by_hand(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        twice("adalora", **RANKED),
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=12,
        save_strategy="no",
    )
    model = tiny("llama", seed=1)
    by_hand = apply(twice("adalora", **RANKED), model, seed=run.args.seed).peft_models[0]
    run.train()
    tuner = by_hand.base_model
    config = tuner.peft_config["adalora-001"]
    config.total_step = 8
    weight, config.orth_reg_weight = config.orth_reg_weight, 0.0  # counted once, by the hook
    assert weight == 0.5
    optimizer, norm = torch.optim.SGD(trained(model).values(), lr=1e-2), 0.0
    for step in range(1, 9):
        model.train()(**collate(rows(model))).loss.backward()
        norm = max(norm, float(torch.nn.utils.get_total_norm([p.grad for p in trained(model).values()])))
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
    for path, parameter in trained(run.model).items():
        torch.testing.assert_close(parameter, trained(model)[path], rtol=0, atol=after_sgd(1e-2, 8, norm))


def test_the_regularisation_is_pefts_and_only_in_training() -> None:
    model = tiny("llama")
    plain = batch_for(model)
    (wrapped,) = apply(twice("adalora"), model).peft_models
    model.eval()
    bare = model(**plain).loss
    with_peft = wrapped.base_model(**plain).loss  # PEFT adds it always
    model.train()
    torch.testing.assert_close(model(**plain).loss, with_peft)
    assert with_peft > bare + 0.1
    labels = int((plain["labels"][:, 1:] != -100).sum())
    half = model(**plain, num_items_in_batch=torch.tensor(2 * labels)).loss
    torch.testing.assert_close(half, with_peft / 2)


def test_the_regularisation_goes_with_a_copy_and_ends_with_a_merge() -> None:
    model = tiny("llama")
    plain = batch_for(model)
    apply(twice("adalora"), model)
    copied = copy.deepcopy(model).train()
    before = copied(**plain).loss
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.mul_(100)
    assert torch.equal(copied(**plain).loss, before)
    copied(**plain).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for name, parameter in copied.named_parameters() if "lora_A" in name)
    assert model.train()(**plain).loss > before + 1
    merged = to_plain(model)
    assert torch.equal(merged.train()(**plain).loss, merged.eval()(**plain).loss)


def test_what_does_not_go_with_shared_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave none of 8 steps"):
        trainer(tmp_path, twice("adalora", tinit=6, tfinal=2)).train()
    with pytest.raises(UserError, match="adalora: its regularisation is added to the model's own loss"):
        trainer(tmp_path, twice("adalora"), label_smoothing_factor=0.1)
