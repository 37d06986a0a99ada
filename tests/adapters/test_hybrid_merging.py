"""Merging `HybridConfig`: over 8 and 4 bits as PEFT's own LoRA does, in bfloat16, and with values that are broken."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend
from torch import nn

from frostline.adapters import check_mergeable
from frostline.core.errors import FrostlineError, PlanError
from frostline.plan import Frozen, Lora, Plan
from frostline.surgery import apply, quantize_frozen, to_plain
from hybrids import PLAIN_LORA, added, hybrid, logits, new, stir
from tolerances import outputs

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
KINDS = ["8 bits", "4 bits", "4 bits, scales in 8"]
LAYER = "base_model.model.model.layers.0.mlp.down_proj"


def quantized(kind: str) -> Any:
    """A Llama whose linear layers, but for the head, are bitsandbytes' own. A CPU needs widths of 64 for 4 bits."""
    import bitsandbytes as bnb

    model = new("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            sizes, weight = (child.in_features, child.out_features, False), child.weight.data.clone()
            if kind == "8 bits":
                layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
                layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
            else:
                options = {"quant_type": "nf4", "compress_statistics": kind != "4 bits"}
                layer = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, **options)
                layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options).to("cpu")
            setattr(parent, name, layer)
    setattr(model, f"is_loaded_in_{kind[0]}bit", True)
    return model


def ours(kind: str) -> Any:
    adapted = hybrid(quantized(kind), [{"index": "0-3", **PLAIN_LORA, "targets": "down"}])
    stir(adapted, 0.1)
    return adapted


def of_peft(kind: str) -> Any:
    """PEFT's own LoRA with the same values."""
    model = get_peft_model(quantized(kind), LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"]))
    values = added(ours(kind))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            layer, _, matrix = name.removesuffix(".default.weight").rpartition(".lora_")
            parameter.data.copy_(values[f"{layer}.hybrid_parts.default.{matrix}"])
    return model


def dequantized(layer: Any) -> torch.Tensor:
    return layer.quantization_backend.get_base_weight(layer.get_base_layer()).float()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Merge lora module")
def test_over_quantized_weights_it_merges_to_what_pefts_lora_merges_to(kind: str) -> None:
    merged, peft_merged = ours(kind).merge_and_unload(safe_merge=True), of_peft(kind).merge_and_unload()
    layer = merged.model.layers[0].mlp.down_proj
    assert type(layer) is type(peft_merged.model.layers[0].mlp.down_proj) is not nn.Linear
    assert torch.equal(layer.weight.data, peft_merged.model.layers[0].mlp.down_proj.weight.data)
    base, trained, result = logits(quantized(kind)), logits(ours(kind)), logits(merged)
    assert torch.equal(result, logits(peft_merged))
    assert (result - trained).norm() < 0.2 * (trained - base).norm()  # nearer than a model that lost its training


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("called", [False, True])  # on some CPUs the first call puts 4 bits into another order
def test_unmerge_puts_quantized_weights_back_bit_for_bit(kind: str, called: bool) -> None:
    adapted = ours(kind)
    layer = adapted.get_submodule(LAYER)
    before, base, trained = dequantized(ours(kind).get_submodule(LAYER)), logits(quantized(kind)), logits(ours(kind))
    if called:
        assert torch.equal(logits(adapted), trained)
    adapted.merge_adapter(safe_merge=True)
    expected = before + layer.get_delta_weight("default")
    assert (dequantized(layer) - expected).norm() < (0.01 if kind == "8 bits" else 0.12) * expected.norm()
    merged = logits(adapted)
    assert (merged - trained).norm() < 0.2 * (trained - base).norm()
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted), trained)
    adapted.merge_adapter()
    copied = copy.deepcopy(adapted) if kind != "8 bits" else adapted  # bitsandbytes cannot copy 8 bits after a call
    with copied.disable_adapter():
        assert torch.equal(logits(copied), base)


@needs_bitsandbytes
def test_what_cannot_be_quantized_again_is_refused_and_nothing_changes() -> None:
    adapted = ours("8 bits")
    adapted.get_submodule(LAYER).quantization_backend = ForwardOnlyQuantizationBackend("gptq")
    trained = logits(adapted)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj cannot be merged: .* quantized with gptq"):
            merge()
    assert torch.equal(logits(adapted), trained)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_of_a_type_that_nothing_can_be_added_to_are_refused(dtype: torch.dtype) -> None:
    adapted = hybrid(new("llama"), [{"index": 0, **PLAIN_LORA, "targets": "down"}])
    adapted.get_submodule(LAYER).base_layer.weight.requires_grad_(False)
    adapted.get_submodule(LAYER).base_layer.weight.data = torch.ones(32, 64).to(dtype)
    with pytest.raises(PlanError, match=f"cannot be merged: its weight is of type Parameter and {dtype}"):
        adapted.merge_adapter()


def test_a_weight_that_is_computed_is_refused() -> None:
    adapted = hybrid(new("llama"), [{"index": 0, **PLAIN_LORA, "targets": "down"}])
    nn.utils.parametrize.register_parametrization(adapted.get_submodule(LAYER).base_layer, "weight", nn.Identity())
    with pytest.raises(PlanError, match="cannot be merged: its weight is computed"):
        adapted.merge_adapter()


@needs_bitsandbytes
def test_pefts_own_lora_over_frostlines_quantized_blocks_is_not_lost_in_a_merge() -> None:
    model = new("llama")
    plan = Plan(blocks=(Lora(targets="all", dropout=0.0),) * 4, head=Frozen(), final_norm=Frozen())
    quantize_frozen(model, apply(plan, model).anatomy, 8)
    with pytest.raises(PlanError, match="cannot be merged: its weight is computed"):
        to_plain(model)
    with pytest.raises(PlanError, match="cannot be merged"):
        check_mergeable(model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_safe_merge_of_broken_values_is_pefts_error_and_merges_nothing(value: float, how: str) -> None:
    adapted = hybrid(new("llama"), [{"index": "0-3", **PLAIN_LORA}])
    with torch.no_grad():
        adapted.get_submodule(LAYER.replace("layers.0", "layers.3")).hybrid_parts["default"].B[0, 0] = value
    weights = {key: tensor.clone() for key, tensor in adapted.state_dict().items()}
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    with pytest.raises(ValueError, match=message) as caught:
        getattr(adapted, how)(safe_merge=True)
    assert isinstance(caught.value, FrostlineError)
    with pytest.raises(ValueError, match=message):
        adapted.get_submodule(LAYER.replace("layers.0", "layers.3")).merge(safe_merge=True)
    for key, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_few_bits_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    adapted = hybrid(new("llama").to(dtype), [{"index": "0-3", **PLAIN_LORA}])
    adapted.add_adapter("second", adapted.peft_config["default"])
    stir(adapted, 0.05)
    layer = adapted.get_submodule(LAYER)
    weight = layer.base_layer.weight.data.clone()
    updates = [layer.get_delta_weight(name) for name in ("default", "second")]
    assert {update.dtype for update in updates} == {torch.float32}
    adapted.merge_adapter(adapter_names=["default", "second"], safe_merge=True)
    exact = weight.double() + sum(update.double() for update in updates)
    merged = layer.base_layer.weight.data.clone()
    assert merged.dtype == dtype
    unit = torch.finfo(dtype).eps / 2  # the largest relative error of one rounding; 1e-7: below it float16 has no bits
    assert ((merged.double() - exact).abs() <= unit * exact.abs() * 1.001 + 1e-7).all()
    adapted.unmerge_adapter()
    back, larger = layer.base_layer.weight.data, torch.maximum(merged.abs(), weight.abs())
    assert ((back.double() - weight.double()).abs() <= 2 * unit * larger.double() + 1e-7).all()


def test_two_merges_one_after_the_other_come_apart_together() -> None:
    adapted = hybrid(new("llama"), [{"index": "0-3", **PLAIN_LORA}])
    adapted.add_adapter("second", adapted.peft_config["default"])
    stir(adapted, 0.1)
    trained = logits(adapted)
    adapted.merge_adapter(adapter_names=["second"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already following adapters were merged")
        adapted.merge_adapter(adapter_names=["default"])
    layer = adapted.get_submodule(LAYER)
    assert layer.merged_adapters == ["second", "default"]
    with pytest.raises(ValueError, match=r"Cannot delete adapter.*'second'.* while .* merged"):
        adapted.delete_adapter("second")
    with pytest.raises(ValueError, match="Cannot delete adapter 'second' while it is merged"):
        layer.delete_adapter("second")
    adapted.unmerge_adapter()
    assert layer.merged_adapters == []
    torch.testing.assert_close(logits(adapted), trained, atol=outputs(trained), rtol=0)


def test_an_adapter_that_is_not_there_is_not_merged_in_silence() -> None:
    adapted = hybrid(new("llama"), [{"index": 0, **PLAIN_LORA}])
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(ValueError, match=r"^Adapter nope does not exist: use one of default$"):
            merge(adapter_names=["nope"])
