"""`HybridConfig` in transformers' own adapter methods, and in PEFT's functions for models that PEFT does not wrap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.functional import set_adapter
from transformers import AutoTokenizer, pipeline

from frostline.adapters import HybridConfig
from hybrids import GATED_LORA, HYBRID, PARALLEL, PLAIN_LORA, PREFIX, added, hybrid, logits, new
from tolerances import outputs

ROOT = Path(__file__).resolve().parents[2]
STORYTELLER = ROOT / "src" / "frostline" / "run" / "demo" / "storyteller"
MIXTURE = [{"index": "1-3", "mode": "adapter", "kind": "mixture", "experts": 3, "top_k": 2, "r": 2}]
INSIDE = [{"index": 3, **PLAIN_LORA}]
"""LoRA on matrices inside an attention that has a prefix in `HYBRID`."""

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=outputs(expected), rtol=0)


def saved(name: str, blocks: Any, folder: Path) -> tuple[Any, torch.Tensor]:
    """The class of a model that lies in `folder/base`; and the outputs with the adapter in `folder/adapter`."""
    base = new(name)
    base.save_pretrained(folder / "base")
    adapted = hybrid(type(base).from_pretrained(folder / "base"), blocks)
    adapted.save_pretrained(folder / "adapter")
    return type(base), logits(adapted)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("llama", HYBRID), ("gpt2", HYBRID), ("bert", HYBRID), ("opt", HYBRID), ("llama", MIXTURE), ("qwen3", MIXTURE)],
)
def test_transformers_loads_saves_switches_and_deletes_it(name: str, blocks: Any, tmp_path: Path) -> None:
    model_class, expected = saved(name, blocks, tmp_path)
    same(logits(model_class.from_pretrained(tmp_path / "adapter")), expected)
    model = model_class.from_pretrained(tmp_path / "base")
    base = logits(model)
    found = model.load_adapter(str(tmp_path / "adapter"))
    assert not found.missing_keys and not found.unexpected_keys
    same(logits(model), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    model.enable_adapters()
    same(logits(model), expected)

    model.add_adapter(HybridConfig(blocks=[{"index": "0-3", **PARALLEL}]), "second")
    assert model.active_adapters() == ["second"]
    assert torch.equal(logits(model), base)
    model.set_adapter("default")
    same(logits(model), expected)
    model.save_pretrained(tmp_path / "again")
    same(logits(model_class.from_pretrained(tmp_path / "again")), expected)
    state = model.get_adapter_state_dict("default")
    fresh = inject_adapter_in_model(HybridConfig(blocks=blocks), model_class.from_pretrained(tmp_path / "base"))
    assert not set_peft_model_state_dict(fresh, state).unexpected_keys
    same(logits(fresh), expected)

    model.delete_adapter("second")
    same(logits(model), expected)
    model.delete_adapter("default")
    assert torch.equal(logits(model), base)
    model.load_adapter(str(tmp_path / "adapter"), adapter_name="third")
    same(logits(model), expected)


def test_pipelines_and_pefts_auto_classes_load_the_folder(tmp_path: Path) -> None:
    _, expected = saved("llama", HYBRID, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(STORYTELLER)
    generator = pipeline("text-generation", model=str(tmp_path / "adapter"), tokenizer=tokenizer)
    same(logits(generator.model), expected)
    same(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)
    assert torch.equal(
        generator.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False),
        hybrid(new("llama")).generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False),
    )


@pytest.mark.parametrize("order", [(HYBRID, INSIDE), (INSIDE, HYBRID), (MIXTURE, HYBRID)])
def test_a_second_adapter_is_injected_beside_or_around_or_inside_the_first(order: Any, tmp_path: Path) -> None:
    alone = [logits(hybrid(new("llama"), blocks)) for blocks in order]
    model = new("llama")
    for name, blocks in zip(("one", "two"), order, strict=True):
        inject_adapter_in_model(HybridConfig(blocks=blocks), model, name)
    assert list(model.peft_config) == ["one", "two"]
    for name, expected, blocks in zip(("one", "two"), alone, order, strict=True):
        source = hybrid(new("llama"), blocks)
        result = set_peft_model_state_dict(model, get_peft_model_state_dict(source), adapter_name=name)
        assert not result.unexpected_keys
        set_adapter(model, name)
        same(logits(model), expected)
        state = get_peft_model_state_dict(model, adapter_name=name)
        assert state.keys() == {key.removeprefix("base_model.model.") for key in get_peft_model_state_dict(source)}


def test_where_transformers_would_not_find_the_values_it_is_refused(tmp_path: Path) -> None:
    model_class, _ = saved("llama", [{"index": 3, **PLAIN_LORA, "gate": True}], tmp_path)
    model = model_class.from_pretrained(tmp_path / "base")
    model.add_adapter(HybridConfig(blocks=HYBRID), "outer")
    base = logits(model)
    with pytest.raises(ValueError, match=r"is inside a module that carries another adapter, .* use peft\.PeftModel"):
        model.load_adapter(str(tmp_path / "adapter"), adapter_name="inner")
    assert list(model.peft_config) == ["outer"]
    assert torch.equal(logits(model), base)
    both = hybrid(new("llama"))  # PEFT itself does find them
    both.load_adapter(tmp_path / "adapter", "inner")
    both.set_adapter("inner")
    same(logits(both), logits(PeftModel.from_pretrained(new("llama"), tmp_path / "adapter")))


def test_a_second_adapter_changes_nothing_for_the_first() -> None:
    adapted = hybrid(new("llama"))
    norm = adapted.get_submodule("base_model.model.model.norm").weight.requires_grad_(True)  # by hand
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    adapted.add_adapter("frozen", HybridConfig(blocks=INSIDE, inference_mode=True))  # as `load_adapter` does
    assert norm.requires_grad and len(trained) > 10
    assert [parameter for parameter in adapted.parameters() if parameter.requires_grad] == trained


def test_pefts_own_lora_and_a_hybrid_share_no_module() -> None:
    model = new("llama")
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    trained = {name: parameter.requires_grad for name, parameter in lora.named_parameters()}
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj carries one of PEFT's own adapters"):
        inject_adapter_in_model(HybridConfig(blocks=[{"index": 0, **PLAIN_LORA, "targets": ["q_proj"]}]), model, "two")
    assert {name: parameter.requires_grad for name, parameter in lora.named_parameters()} == trained
    inject_adapter_in_model(HybridConfig(blocks=[{"index": 0, **GATED_LORA}]), model, "two")
    assert any(".down_proj.hybrid_parts.two." in name for name, _ in model.named_parameters())


def test_the_status_of_model_and_layers() -> None:
    adapted = hybrid(new("llama"))
    status = adapted.get_model_status()
    assert status == get_model_status(adapted)
    assert status.peft_types == {"default": "HYBRID"}
    assert status.adapter_model_type == "HybridModel"
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.requires_grad == {"default": True}
    assert status.trainable_params == sum(p.numel() for p in added(adapted).values())
    layers = get_layer_status(adapted)
    assert len(layers) == status.num_adapter_layers == 1 + 1 + 2 + 1
    assert {layer.module_type for layer in layers} == {"HybridLayer"}
    with adapted.disable_adapter():
        assert adapted.get_model_status().enabled is False
    assert type(adapted.get_base_model()) is type(new("llama"))


def test_values_are_set_after_an_injection_on_the_meta_device() -> None:
    config = HybridConfig(blocks=[{"index": 0, **PREFIX}])
    model = inject_adapter_in_model(config, new("llama"), low_cpu_mem_usage=True)
    assert all(parameter.is_meta for parameter in added(model).values())
    source = hybrid(new("llama"), config.blocks)
    set_peft_model_state_dict(model, get_peft_model_state_dict(source), low_cpu_mem_usage=True)
    assert torch.equal(logits(model), logits(source))


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "peft_hybrid.py"), str(STORYTELLER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 10 and losses[-1] < losses[0] / 2
    assert "apples" in done.stdout.splitlines()[-1]
