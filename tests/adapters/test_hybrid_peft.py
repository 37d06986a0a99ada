"""Hybrid adapters as a PEFT method: made, saved, loaded, switched, combined, merged and unloaded like PEFT's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import TrainingArguments

from architectures import batch_for
from frostline.adapters import HybridConfig
from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Lora, Peft, Plan, Prefix
from hybrids import FAMILIES, GATED_LORA, HYBRID, PARALLEL, PLAIN_LORA, PREFIX, added, hybrid, inputs, logits, new, stir
from tolerances import outputs, rounding

OTHER = [
    {"index": 3, **PLAIN_LORA},
    {"index": "1-2", **PREFIX, "length": 2, "gate": "output"},
    {"index": 0, **PARALLEL},
]
"""On the modules that `HYBRID` is on, and on others; matrices inside an attention that has a prefix."""


def second(model: PeftModel, name: str = "second", blocks: Any = OTHER, **options: Any) -> None:
    model.add_adapter(name, HybridConfig(blocks=blocks, **options))
    stir(model, seed=7)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    adapted = hybrid(new(name))
    adapted.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "HYBRID"
    assert config["blocks"][0] == HYBRID[0]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in added(adapted).values())
    loaded = PeftModel.from_pretrained(new(name), tmp_path)
    assert torch.equal(logits(loaded), logits(adapted))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = PeftModel.from_pretrained(new(name), tmp_path, is_trainable=True)
    assert {key for key, p in trainable.named_parameters() if p.requires_grad} == set(added(trainable))


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_under_another_name_and_from_the_meta_device(assign: bool, tmp_path: Path) -> None:
    adapted = hybrid(new("llama"))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(new("llama"), tmp_path, adapter_name="mine", low_cpu_mem_usage=assign)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert loaded.active_adapter == "mine"
    assert torch.equal(logits(loaded), logits(adapted))
    loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=assign)
    loaded.set_adapter("again")
    assert torch.equal(logits(loaded), logits(adapted))


def test_of_a_plan_it_is_the_plans_adapters() -> None:
    around = {"final_norm": Frozen(), "head": Frozen()}
    plan = Plan(blocks=(Lora(targets="down", gate=True, dropout=0.0),) * 3 + (Prefix(),), **around)
    config = HybridConfig.of(plan, inference_mode=False)
    assert [entry["index"] for entry in config.blocks] == ["0-2", "3"]
    assert config.modes(4) == plan.blocks
    for mode, reason in ((Full(), "mode full is not an adapter"), (Peft(method="ia3"), "ia3 is a method of PEFT")):
        with pytest.raises(UserError, match=f"^HybridConfig: block 1: {reason}"):
            HybridConfig.of(Plan(blocks=(Prefix(), mode), **around))
    with_head = Plan(blocks=(Prefix(),), final_norm=Frozen())
    with pytest.raises(
        UserError, match=r"^HybridConfig: head: mode full is not an adapter: give modules_to_save or task_type"
    ):
        HybridConfig.of(with_head)
    assert HybridConfig.of(with_head, modules_to_save=["score"]).modules_to_save == ["score"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "^HybridConfig: blocks: give a mode for at least one block, and only for blocks 0-3$"),
        ([{"index": "2-4", **PREFIX}], "^HybridConfig: blocks: give a mode for .*, and only for blocks 0-3$"),
        (
            [{"index": 0, "mode": "lora", "rank": 3}],
            "^HybridConfig: block 0: lora: unknown key 'rank': .*known: alpha",
        ),
        ([{"index": 0, "mode": "lorra"}], "^HybridConfig: block 0: unknown mode 'lorra'"),
        ([{"index": 1, "mode": "adapter"}], "^HybridConfig: block 1: adapter: the key 'kind' is missing$"),
        ([{"index": 1, "mode": "full"}], "^HybridConfig: block 1: mode full is not an adapter"),
        ([{"index": 1, **PREFIX}, {"index": "0-1", **PREFIX}], "^HybridConfig: blocks: block 1 is given twice"),
        ([{"index": "x", **PREFIX}], "^HybridConfig: blocks: block index 'x': use a number"),
        (
            [{"index": 0, **PREFIX}, {"index": 1, "mode": "lora", "targets": ["fc1"]}],
            "^block 1: lora target 'fc1' match",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_one_line_and_leave_the_model_unchanged(blocks: Any, message: str) -> None:
    model = new("llama")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match=message) as caught:
        get_peft_model(model, HybridConfig(blocks=blocks))
    assert "\n" not in str(caught.value)
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "bert"])
def test_of_two_adapters_each_does_what_it_does_alone(name: str, tmp_path: Path) -> None:
    model = new(name)
    base = logits(model)
    both = hybrid(model)
    second(both)
    found = {}
    for adapter in ("default", "second"):
        both.set_adapter(adapter)
        found[adapter] = logits(both)
        assert {key for key, p in both.named_parameters() if p.requires_grad} == {
            key for key in added(both) if f".{adapter}." in key
        }
    both.save_pretrained(tmp_path)
    for adapter, place in (("default", tmp_path), ("second", tmp_path / "second")):
        alone = PeftModel.from_pretrained(new(name), place)
        assert torch.equal(logits(alone), found[adapter]), adapter
    with both.disable_adapter():
        assert torch.equal(logits(both), base)
    both.base_model.set_adapter(["default", "second"])
    together = logits(both)
    assert all(not torch.allclose(together, alone, atol=1e-3) for alone in found.values())
    assert {key for key, p in both.named_parameters() if p.requires_grad} == set(added(both))
    both.delete_adapter("default")
    assert not any(".default." in key for key in added(both))
    both.set_adapter("second")
    assert torch.equal(logits(both), found["second"])
    plain = both.unload()
    assert torch.equal(logits(plain), base)
    assert [key for key, _ in plain.named_modules()] == [key for key, _ in new(name).named_modules()]


def test_two_low_rank_updates_in_use_at_once_add_up() -> None:
    both = hybrid(new("llama"), [{"index": 1, **PLAIN_LORA, "targets": "down"}])
    second(both, blocks=[{"index": 1, **PLAIN_LORA, "targets": "down", "r": 3}])
    both.base_model.set_adapter(["default", "second"])
    layer = both.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    tokens = torch.randn(2, layer.in_features)
    updates = sum(part.update(layer.base_layer) for part in layer.hybrid_parts.values())
    expected = tokens @ (layer.base_layer.weight + updates).T
    near = rounding(layer.in_features + 6, expected)
    torch.testing.assert_close(layer(tokens), expected, atol=near, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_and_unmerged_in_place(name: str) -> None:
    adapted = hybrid(new(name), [{"index": "0-3", **PLAIN_LORA}])
    stir(adapted, 0.1)
    base, trained = logits(new(name)), logits(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), trained, atol=outputs(trained), rtol=0)
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits(adapted), trained, atol=outputs(trained), rtol=0)
    adapted.merge_adapter(safe_merge=True)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), base, atol=outputs(base), rtol=0)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (GATED_LORA, r"the gate of its LoRA depends on the input"),
        (PREFIX, r"an ordinary model cannot hold a prefix"),
        (PARALLEL, r"an adapter with an activation cannot be written as one matrix"),
    ],
)
def test_what_is_no_change_of_weights_is_not_merged_and_nothing_changes(mode: Any, reason: str) -> None:
    adapted = hybrid(new("llama"), [{"index": 0, **PLAIN_LORA}, {"index": 3, **mode}])
    weights = {key: value.clone() for key, value in adapted.state_dict().items()}
    for merge in (adapted.merge_and_unload, adapted.merge_adapter):
        with pytest.raises(
            UserError, match=rf"^model\.layers\.3\.[a-z_.]+ cannot be merged: {reason}: use the model with"
        ):
            merge()
        assert all(torch.equal(value, weights[key]) for key, value in adapted.state_dict().items())
    second(adapted, blocks=[{"index": 1, **PLAIN_LORA}])
    adapted.set_adapter("second")
    weights = {key: value.clone() for key, value in adapted.state_dict().items()}
    with pytest.raises(UserError, match=reason):
        adapted.merge_adapter(adapter_names=["default"])
    assert all(torch.equal(value, weights[key]) for key, value in adapted.state_dict().items())
    trained = logits(adapted)
    near = 50 * outputs(trained)  # so stirred, the scores reach 48, and softmax makes their errors relative ones
    torch.testing.assert_close(logits(adapted.merge_and_unload()), trained, atol=near, rtol=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_it_trains_with_transformers_own_trainer(bf16: bool, tmp_path: Path) -> None:
    adapted = hybrid(new("llama"), task_type="CAUSAL_LM")
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    batch = batch_for(adapted.get_base_model(), batch=4)
    rows = [{key: value[i % 4] for key, value in batch.items()} for i in range(8)]
    args = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, max_steps=3, learning_rate=1e-2, use_cpu=True, bf16=bf16,
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False},
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(adapted, args, train_dataset=rows).train()
    moved = {key for key, value in adapted.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(added(adapted))
    adapted.save_pretrained(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(new("llama"), tmp_path / "saved")
    assert all(torch.equal(value, added(adapted)[key]) for key, value in added(loaded).items())
    if not bf16:  # the trainer leaves its autocast on the model
        assert torch.equal(
            loaded.generate(**inputs(new("llama")), max_new_tokens=3, do_sample=False),
            adapted.generate(**inputs(new("llama")), max_new_tokens=3, do_sample=False),
        )


@pytest.mark.parametrize(("name", "head"), [("bert", "classifier"), ("llama", "score")])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_a_classifiers_head_trains_and_is_saved(name: str, head: str, task_type: Any, tmp_path: Path) -> None:
    def fresh(seed: int = 0) -> Any:
        return new(name, task="classification", seed=seed)

    adapted = hybrid(fresh(), task_type=task_type, modules_to_save=[head])
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained > set(added(adapted))
    assert all(f".{head}." in key for key in trained - set(added(adapted)))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    start = {key: adapted.state_dict()[key].clone() for key in trained}
    adapted.train()(**batch_for(adapted.get_base_model())).loss.backward()
    optimizer.step()
    assert all(not torch.equal(adapted.state_dict()[key], value) for key, value in start.items())
    adapted.save_pretrained(tmp_path)
    other = fresh()
    other.get_submodule(head).weight.data.zero_()
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(logits(loaded), logits(adapted))


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        adapted = hybrid(new(name)).train()
        if checkpointing:
            adapted.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        loss = adapted(**batch_for(adapted.get_base_model()), use_cache=False).loss
        adapted(
            **batch_for(adapted.get_base_model(), length=5, seed=3), use_cache=False
        )  # before backward runs it again
        loss.backward()
        return {key: value.grad for key, value in added(adapted).items()}

    own, found = gradients(False), gradients(True)
    assert len(own) > 10
    assert all(torch.equal(own[key], found[key]) for key in own)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert"])
def test_autocast_and_a_bfloat16_base_are_near_float32(name: str, implementation: str) -> None:
    exact = hybrid(new(name, implementation))
    stir(exact, 0.1)
    trained = logits(exact)
    assert not torch.allclose(trained, logits(new(name)), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        output = exact.train()(**inputs(exact)).logits
    output.float().square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in added(exact).values())
    rounded = hybrid(new(name, implementation).to(torch.bfloat16))
    stir(rounded, 0.1)
    assert {value.dtype for value in added(rounded).values()} == {torch.float32}
    for found in (output.detach(), logits(rounded)):
        assert (found.float() - trained).norm() < 3e-2 * trained.norm()


def test_blocks_that_are_not_named_stay_as_they_are() -> None:
    adapted = hybrid(new("llama"), [{"index": 2, **PREFIX}])
    assert all(".layers.2.self_attn." in key for key in added(adapted))
    assert HybridConfig(blocks=[{"index": 2, **PREFIX}]).modes(4)[3] == Frozen()
