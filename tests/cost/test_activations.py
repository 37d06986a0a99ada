"""Predicted activations against what autograd is seen to keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cost_cases import base16, minilm, named_plans, small, whole_batch
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Workload, flow, has_dropout, saved
from frostline.loss_positions import use_loss_positions
from frostline.plan import Plan
from frostline.surgery import apply

BATCH, LENGTH = 2, 48


def kept(model: PreTrainedModel, plan: Plan, bfloat16: bool, loss_positions: bool = False) -> int:
    """Bytes of the distinct storages that one forward pass in training saves, parameters left out."""
    anatomy = apply(plan, model).anatomy
    if loss_positions:
        use_loss_positions(model, anatomy, whole_batch(model, 2, 8))
    model.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(**whole_batch(model, BATCH, LENGTH)).loss
    total = sum(storage.nbytes() for storage in seen.values())
    del loss
    return total


def predicted(
    model: PreTrainedModel, plan: Plan, bfloat16: bool, attention: str, loss_positions: bool = False
) -> float:
    workload = Workload(
        per_device_train_batch_size=BATCH,
        length=LENGTH,
        bf16=bfloat16,
        attention=attention,
        dropout=has_dropout(model.config),
        frozen_dtype=str(model.dtype).removeprefix("torch."),
        loss_positions=loss_positions,
    )
    return saved(flow(plan, find_anatomy(model)), workload).total


def compare(make: Callable[[], PreTrainedModel], name: str, bfloat16: bool, attention: str, within: float) -> None:
    model = make()
    plan = named_plans(find_anatomy(model))[name]
    assert predicted(model, plan, bfloat16, attention) == pytest.approx(kept(model, plan, bfloat16), rel=within), name


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["all", "bot50", "top50", "lora", "rows of the top", "untied bot50"])
def test_base16(models_dir: Path, name: str, bfloat16: bool) -> None:
    compare(lambda: base16(models_dir, "sdpa"), name, bfloat16, "sdpa", within=0.01)


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["all", "bot50", "int50", "lora", "lora on all of the top"])
def test_base16_frozen_in_bfloat16(models_dir: Path, name: str, bfloat16: bool) -> None:
    compare(lambda: base16(models_dir, "sdpa", torch.bfloat16), name, bfloat16, "sdpa", within=0.05)


@pytest.mark.parametrize("name", ["all", "bot50", "lora"])
def test_base16_eager(models_dir: Path, name: str) -> None:
    compare(lambda: base16(models_dir), name, False, "eager", within=0.01)


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["all", "bot50", "top50", "lora", "feed-forward of the top"])
def test_minilm(models_dir: Path, name: str, bfloat16: bool) -> None:
    compare(lambda: minilm(models_dir, "sdpa"), name, bfloat16, "sdpa", within=0.01)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gpt2", "gpt_neox", "mixtral", "olmo2", "opt", "phi", "qwen3", "distilbert"]
)
def test_families(family: str, attention: str) -> None:
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("a softcap needs eager attention")
    for name in ("all", "bot50", "top50", "lora", "attention of the top"):
        compare(lambda: small(family, attention), name, False, attention, within=0.05)


def test_nothing_is_kept_below_the_boundary() -> None:
    anatomy = find_anatomy(small("llama"))
    parts = saved(flow(named_plans(anatomy)["bot50"], anatomy), Workload())
    assert [part.total > 0 for part in parts.blocks] == [False, False, True, True]
    assert parts.embeddings.total == 0


def test_a_llama_in_float32_keeps_83_and_57_times_its_width() -> None:
    """Per token, of a block of a Llama's proportions: trained, and frozen above the boundary."""
    wide = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8}
    anatomy = find_anatomy(tiny("llama", **wide))
    workload = Workload(per_device_train_batch_size=16, length=128)
    blocks = saved(flow(named_plans(anatomy)["int50"], anatomy), workload).blocks
    # The first block's input carries nothing; the second is frozen, the third trains.
    frozen, trained = (block.total / (16 * 128 * 512) for block in blocks[1:3])
    assert trained == pytest.approx(83, abs=1)
    assert frozen == pytest.approx(57, abs=1)


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "phi3", "bert"])
def test_a_last_block_of_which_one_position_is_read(family: str, attention: str, bfloat16: bool) -> None:
    if family == "bert" and attention == "eager" and bfloat16:
        pytest.skip("its softmax is narrow, which the formulas leave out")
    for name in ("bot75", "lora on all of the top", "feed-forward of the top"):
        model = tiny(family, "classification")
        model.set_attn_implementation(attention)
        plan = named_plans(find_anatomy(model))[name]
        expected = predicted(model, plan, bfloat16, attention, loss_positions=True)
        assert expected == pytest.approx(kept(model, plan, bfloat16, loss_positions=True), rel=0.05), name
