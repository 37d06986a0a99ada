"""Cases that structure alone gets wrong: projections, shared tables, late convolutions; and real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from architectures import ARCHITECTURES, batch_for, tiny
from frostline.anatomy import Tensor, find_anatomy, skeleton
from frostline.core.errors import UserError


def names(tensors: tuple[Tensor, ...]) -> set[str]:
    return {tensor.name for tensor in tensors}


def test_projections_around_the_blocks() -> None:
    anatomy = find_anatomy(tiny("opt", word_embed_proj_dim=16))
    assert "model.decoder.project_in.weight" in names(anatomy.embeddings)
    assert names(anatomy.head) == {"model.decoder.project_out.weight"}
    assert [linear.name for linear in anatomy.embedding_linears] == ["model.decoder.project_in"]
    assert [linear.name for linear in anatomy.head_linears] == ["model.decoder.project_out", "lm_head"]
    assert (anatomy.hidden_size, anatomy.tied) == (32, True)


def test_a_convolution_after_the_first_block_freezes_with_the_embeddings() -> None:
    anatomy = find_anatomy(tiny("deberta-v2", conv_kernel_size=3))
    late = {name for name in names(anatomy.tensors) if "encoder.conv" in name}
    assert len(late) == 4
    assert late <= names(anatomy.embeddings)
    assert not anatomy.final_norm


def test_a_table_that_every_block_has_for_itself_belongs_to_the_block() -> None:
    config = AutoConfig.for_model("umt5", d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2)
    anatomy = find_anatomy(skeleton(config, AutoModelForSeq2SeqLM))
    assert names(anatomy.embeddings) == {"shared.weight"}
    for block in anatomy.blocks:
        table = f"{block.name}.layer.0.SelfAttention.relative_attention_bias.weight"
        assert anatomy.block_of(table) is block
        assert not anatomy.tensor(table).is_bias


def test_norms_after_the_embeddings_and_after_the_blocks_are_distinguished() -> None:
    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3}
    anatomy = find_anatomy(skeleton(AutoConfig.for_model("mbart", **sizes), AutoModelForSeq2SeqLM))
    stacks = ("model.encoder", "model.decoder")
    pieces = ("weight", "bias")
    assert {f"{s}.layernorm_embedding.{p}" for s in stacks for p in pieces} <= names(anatomy.embeddings)
    assert {f"{s}.layer_norm.{p}" for s in stacks for p in pieces} == names(anatomy.final_norm)
    assert [block.stack for block in anatomy.blocks] == ["encoder"] * 2 + ["decoder"] * 3


def test_linear_attention_is_attention() -> None:
    config = AutoConfig.for_model("qwen3_next", hidden_size=32, num_hidden_layers=4)
    for block in find_anatomy(skeleton(config, AutoModelForCausalLM)).blocks:
        assert {"attention", "feed_forward", "norm"} == {str(tensor.role) for tensor in block.tensors}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_finding_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny(name, dropout=0.5).train()
    list(model.modules())[-1].eval()
    model.get_input_embeddings().weight.requires_grad_(False)
    before, random = _state(model), torch.get_rng_state()
    find_anatomy(model)
    assert _state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch_for(model))


def _state(model: torch.nn.Module) -> dict[str, object]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: (id(tensor), tensor._version, tensor.requires_grad) for name, tensor in tensors.items()},
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def test_a_failed_search_leaves_no_hook_behind() -> None:
    model = tiny("llama")
    model.model.forward = lambda **inputs: None
    with pytest.raises(UserError, match="no block ran"):
        find_anatomy(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_skeleton_of_seven_billion_parameters() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32
    )
    random = torch.get_rng_state()
    model = skeleton(config, AutoModelForCausalLM)
    anatomy = find_anatomy(model)
    assert anatomy.total_parameters == 6_738_415_616
    assert len(anatomy.blocks) == 32
    assert {block.parameters for block in anatomy.blocks} == {202_383_360}
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("folder", "auto_class", "blocks", "parameters", "tied"),
    [
        ("all-MiniLM-L6-v2", AutoModelForSequenceClassification, 6, 22_713_986, False),
        ("base16", AutoModelForCausalLM, 16, 13_902_080, True),
        ("stories260K", AutoModelForCausalLM, 5, 260_032, True),
    ],
)
def test_real_models(models_dir: Path, folder: str, auto_class: Any, blocks: int, parameters: int, tied: bool) -> None:
    anatomy = find_anatomy(auto_class.from_pretrained(models_dir / folder))
    assert (len(anatomy.blocks), anatomy.total_parameters, anatomy.tied) == (blocks, parameters, tied)
    assert len({block.parameters for block in anatomy.blocks}) == 1
