"""What PEFT users give beside the blocks, and what an adapter knows of its base: honoured or refused, never ignored."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from frostline.adapters import HybridConfig
from frostline.core.errors import AdapterError, PlanError, UnsupportedModel
from hybrids import DECODERS, HYBRID, PARALLEL, PLAIN_LORA, PREFIX, added, hybrid, logits, new, stir

MIXTURE = [{"index": "1-3", "mode": "adapter", "kind": "mixture", "experts": 3, "top_k": 2, "r": 2}]
LORA = [{"index": 0, **PLAIN_LORA}]
KINDS = {"lora": LORA, "parallel": [{"index": 1, **PARALLEL}], "mixture": MIXTURE, "all": HYBRID}


def test_the_methods_name_is_one_of_pefts_kind() -> None:
    kind: Any = HybridConfig(blocks=HYBRID).peft_type
    for one, value in ((kind, "HYBRID"), (PeftType.LORA, "LORA")):
        assert (one, one.value, str(one).partition(".")[-1]) == (value, value, value)
    assert json.loads(json.dumps(HybridConfig(blocks=HYBRID).to_dict()))["peft_type"] == "HYBRID"


@pytest.mark.parametrize(
    "name",
    ["target_modules", "layers_to_transform", "bias", "rank_pattern", "use_rslora", "r", "exclude_modules", "use_dora"],
)
def test_options_of_pefts_lora_are_pefts_error_for_an_unknown_option(name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        HybridConfig(blocks=HYBRID, **{name: ["q_proj"]})


@pytest.mark.parametrize("blocks", ["lora", {"mode": "lora"}, 3, None, [3], [None]])
def test_blocks_that_are_no_list_of_modes_are_one_clear_line(blocks: Any) -> None:
    with pytest.raises(PlanError, match=r"^HybridConfig: blocks: .* is not a list of modes: use a list with a mode"):
        HybridConfig(blocks=blocks)


def test_modules_that_carry_the_adapter_are_where_pefts_tools_look_for_them() -> None:
    adapted = hybrid(new("llama"), [{"index": "1-2", **PLAIN_LORA, "targets": ["o_proj", "up_proj"]}])
    paths = {f"model.layers.{i}.{name}" for i in (1, 2) for name in ("self_attn.o_proj", "mlp.up_proj")}
    assert adapted.peft_config["default"].target_modules == paths == set(adapted.targeted_module_names)
    assert HybridConfig(blocks=HYBRID).target_modules is None


@pytest.mark.parametrize("kind", KINDS)
def test_init_weights_false_changes_the_outputs_at_once(kind: str) -> None:
    base = logits(new("llama"))
    torch.manual_seed(0)
    adapted = get_peft_model(new("llama"), HybridConfig(blocks=KINDS[kind], init_weights=False))
    assert all(parameter.any() for parameter in added(adapted).values())
    assert not torch.allclose(logits(adapted), base, atol=1e-3)
    with pytest.raises(PlanError, match=r"^HybridConfig: init_weights: 'gaussian': use true or false$"):
        HybridConfig(blocks=HYBRID, init_weights="gaussian")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_float32_unless_autocast_adapter_dtype_is_false(kind: str, dtype: torch.dtype) -> None:
    def model() -> Any:
        return new("llama").to(dtype)

    config = HybridConfig(blocks=KINDS[kind])
    assert {value.dtype for value in added(get_peft_model(model(), config)).values()} == {torch.float32}
    adapted = get_peft_model(model(), config, autocast_adapter_dtype=False)
    adapted.add_adapter("second", config, autocast_adapter_dtype=False)
    adapted.add_adapter("third", config)
    for name, wanted in (("default", dtype), ("second", dtype), ("third", torch.float32)):
        assert {value.dtype for key, value in added(adapted).items() if f".{name}." in key} == {wanted}
    stir(adapted, 0.1)
    found = logits(adapted)
    assert found.dtype == dtype and found.isfinite().all()
    adapted.train()(input_ids=torch.tensor([[5, 6, 7]])).logits.float().sum().backward()
    assert all(value.grad is not None for key, value in added(adapted).items() if ".default." in key)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_on_a_bfloat16_base_does_not_round_the_adapter(assign: bool, tmp_path: Path) -> None:
    source = hybrid(new("llama").to(torch.bfloat16))
    source.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(new("llama").to(torch.bfloat16), tmp_path, low_cpu_mem_usage=assign)
    assert all(torch.equal(value, added(source)[key]) for key, value in added(loaded).items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nope"], "modules_to_save: nope matches no module"),
        (["lm_head", "embed"], "modules_to_save: embed matches no module"),
        (
            ["up_proj"],
            r"modules_to_save: up_proj trains model\.layers\.0\.mlp\.up_proj whole, which carries the",
        ),
        (["layers.0.mlp"], r"modules_to_save: layers\.0\.mlp trains model\.layers\.0\.mlp\.gate_proj whole"),
    ],
)
def test_modules_to_save_that_match_nothing_or_carry_the_adapter_are_refused(names: Any, message: str) -> None:
    model = new("llama")
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, HybridConfig(blocks=LORA, modules_to_save=names))
    assert not added(model)
    adapted = get_peft_model(model, HybridConfig(blocks=LORA, modules_to_save=["lm_head", "layers.3.mlp.down_proj"]))
    whole = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad} - set(added(adapted))
    assert len(whole) == 2


@pytest.mark.parametrize("name", DECODERS)
def test_a_folder_knows_its_base(name: str, tmp_path: Path) -> None:
    hybrid(new(name)).save_pretrained(tmp_path)
    base = json.loads((tmp_path / "adapter_config.json").read_text())["base"]
    assert (base["blocks"], base["hidden_size"]) == (4, 32)
    assert base["model_type"] == new(name).config.model_type
    assert base["fingerprint"].startswith("float32:")
    assert PeftConfig.from_pretrained(tmp_path).base == base
    PeftModel.from_pretrained(new(name), tmp_path)
    PeftModel.from_pretrained(new(name).to(torch.bfloat16), tmp_path)  # the same weights in another dtype
    other = new("opt" if name != "opt" else "llama")
    for model, sizes in ((new(name, num_hidden_layers=6), "6 blocks of width 32"), (other, "4 blocks of width 32")):
        names = [path for path, _ in model.named_modules()]
        with pytest.raises(
            AdapterError, match=rf"^HybridConfig: the adapter was made for .*, and this .* {sizes}: use"
        ):
            PeftModel.from_pretrained(model, tmp_path)
        assert [path for path, _ in model.named_modules()] == names
        assert not getattr(model, "peft_config", {})


def test_a_base_with_other_weights_is_a_warning_and_new_heads_and_tokens_are_none(tmp_path: Path) -> None:
    hybrid(new("llama", task="classification"), task_type="SEQ_CLS").save_pretrained(tmp_path)
    copy = new("llama", task="classification")
    copy.model.layers[2].mlp.up_proj.weight.data.mul_(1.01)
    with pytest.warns(UserWarning, match="made for a base of the same type and sizes, but with other weights"):
        PeftModel.from_pretrained(copy, tmp_path)
    same = new("llama", task="classification")
    same.score.weight.data.normal_()
    same.resize_token_embeddings(140)
    PeftModel.from_pretrained(same, tmp_path)
    meta = new("llama", task="classification").to("meta")
    inject_adapter_in_model(PeftConfig.from_pretrained(tmp_path), meta, low_cpu_mem_usage=True)


def test_one_config_serves_several_models_and_a_damaged_base_is_refused() -> None:
    config = HybridConfig(blocks=[{"index": 0, **PREFIX}])
    for model in (new("llama"), new("gpt2"), new("llama", num_hidden_layers=6)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*renamed")
            assert get_peft_model(model, config).peft_config["default"] is config
    assert config.base is None and config.to_dict()["base"]["blocks"] == 6
    with pytest.raises(AdapterError, match=r"^HybridConfig: base: 3 is not a table"):
        get_peft_model(new("llama"), HybridConfig(blocks=HYBRID, base=3))


def test_models_without_blocks_are_told_which_adapters_of_peft_take_them() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    message = r"^HybridConfig: .*; for .* names of modules, such as peft\.LoraConfig\(target_modules=\[\.\.\.\]\)$"
    for model in (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), vit):
        with pytest.raises(UnsupportedModel, match=message):
            get_peft_model(model, HybridConfig(blocks=HYBRID))
