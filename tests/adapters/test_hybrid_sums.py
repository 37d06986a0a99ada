"""Sums of LoRA adapters, and their conversion to PEFT's own LoRA; for other kinds, PEFT's kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter

from frostline.adapters import HybridConfig
from hybrids import HYBRID, PLAIN_LORA, added, hybrid, logits, new, stir
from tolerances import outputs

ATTENTION = {**PLAIN_LORA, "targets": ["q_proj", "v_proj"]}


def lora(mode: dict[str, Any] = PLAIN_LORA, **changes: Any) -> list[dict[str, Any]]:
    return [{"index": "0-2", **mode, **changes}]


def three() -> PeftModel:
    model = hybrid(new("llama"), lora())
    model.add_adapter("second", HybridConfig(blocks=lora(alpha=8)))
    model.add_adapter("wide", HybridConfig(blocks=[{"index": "1-3", **ATTENTION, "r": 4}]))
    stir(model, 0.2)
    return model


def updates(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    layers = ((path, layer) for path, layer in model.named_modules() if hasattr(layer, "hybrid_parts"))
    return {path: layer.get_delta_weight(name) for path, layer in layers if name in layer.hybrid_parts}


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_a_sum_is_the_sum_of_the_updates(how: str, tmp_path: Path) -> None:
    model = three()
    weights = {"default": 0.5, "second": -1.5, "wide": 2.0}
    rank = 8 if how == "svd" else None  # where the rank is large enough, svd is exact as cat is
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum", how, rank)
    expected: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        for path, update in updates(model, name).items():
            expected[path] = expected.get(path, 0) + weight * update
    found = updates(model, "sum")
    assert found.keys() == expected.keys() and len(found) == 3 * 7 + 2
    for path, update in expected.items():
        torch.testing.assert_close(found[path], update, atol=1e-5, rtol=1e-5)
    assert model.active_adapters == ["default"]
    model.set_adapter("sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert torch.equal(logits(PeftModel.from_pretrained(new("llama"), tmp_path / "sum")), logits(model))


def test_linear_and_a_small_svd_are_what_pefts_own_lora_makes_of_the_same_values() -> None:
    model = hybrid(new("llama"), lora(ATTENTION))
    model.add_adapter("second", HybridConfig(blocks=lora(ATTENTION, alpha=8)))
    stir(model, 0.2)
    targets = [f"model.layers.{index}.self_attn.{name}" for index in range(3) for name in ("q_proj", "v_proj")]
    other = get_peft_model(new("llama"), LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    other.add_adapter("second", LoraConfig(r=2, lora_alpha=8, target_modules=targets))
    values = added(model)
    for key, parameter in other.named_parameters():
        if ".lora_" in key:
            path, _, rest = key.partition(".lora_")
            matrix, name, _ = rest.split(".")
            parameter.data.copy_(values[f"{path}.hybrid_parts.{name}.{matrix}"])
    for how, weights in (("linear", [0.5, -1.5]), ("svd", [0.5, -1.5]), ("linear", [1.0, 2.0])):
        for peft_model in (model, other):
            peft_model.add_weighted_adapter(["default", "second"], weights, f"{how} {weights[0]}".replace(".", ""), how)
        name = f"{how} {weights[0]}".replace(".", "")
        for path, update in updates(model, name).items():
            torch.testing.assert_close(update, other.get_submodule(path).get_delta_weight(name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("adapters", "weights", "how", "message"),
    [
        (["default", "nope"], [1.0, 1.0], "cat", "Adapter nope does not exist"),
        (["default", "default"], [1.0, 1.0], "cat", "use different adapters, and one weight for each"),
        (["default"], [1.0, 1.0], "cat", "use different adapters, and one weight for each"),
        ([], [], "cat", "use different adapters, and one weight for each"),
        (["default", "wide"], [1.0, 1.0], "linear", "All adapters must have the same r value .* block 1 has 2, 4: use"),
        (["default", "second"], [1.0, 1.0], "ties", "Invalid combination_type: ties: use one of svd, cat, linear"),
        (["default", "mixed"], [1.0, 1.0], "cat", "block 0 has more than LoRA: use adapters of LoRA only"),
    ],
)
def test_sums_that_cannot_be_made_are_value_errors_and_leave_no_adapter(
    adapters: Any, weights: Any, how: str, message: str
) -> None:
    model = three()
    model.add_adapter("mixed", HybridConfig(blocks=HYBRID))
    names = list(added(model))
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, "sum", how)
    assert list(added(model)) == names and "sum" not in model.peft_config
    with pytest.raises(ValueError, match="Adapter second exists already"):
        model.add_weighted_adapter(["default"], [1.0], "second")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [2, 0.999999])
def test_lora_is_converted_to_pefts_own(name: str, rank: Any) -> None:
    adapted = hybrid(new(name), lora())
    stir(adapted, 0.1)
    assert adapted.supports_lora_conversion()
    config, values = convert_to_lora(adapted, rank=rank)
    assert isinstance(config, LoraConfig)
    config.fan_in_fan_out = name == "gpt2"
    other = get_peft_model(new(name), config)
    assert not set_peft_model_state_dict(other, values).unexpected_keys
    trained = logits(adapted)
    torch.testing.assert_close(logits(other), trained, atol=20 * outputs(trained), rtol=0)


def test_what_only_pefts_lora_can_is_pefts_own_error(tmp_path: Path) -> None:
    adapted = hybrid(new("llama"))
    adapted.save_pretrained(tmp_path)
    assert not adapted.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(adapted, rank=2)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but HYBRID was passed"):
        hotswap_adapter(adapted, str(tmp_path), "default")
    with pytest.raises(ValueError, match="scaling is only supported for models with `LoraLayer`s"):
        rescale_adapter_scale(adapted, 0.5).__enter__()
