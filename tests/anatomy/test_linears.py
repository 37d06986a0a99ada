"""Weight matrices: against torch's own count of operations, and tied heads."""

from __future__ import annotations

import pytest
import torch
from expected_anatomies import EXPECTED
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from architectures import ARCHITECTURES, batch_for, decoder_names, encoder_decoder_names, encoder_names, tiny
from frostline.anatomy import Linear, Part, find_anatomy, skeleton

NAMES = list(ARCHITECTURES)


# DeBERTa is left out: it also projects its table of relative positions.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "deberta-v2"])
def test_linears_add_up_to_the_operations_that_torch_counts(name: str) -> None:
    model = tiny(name, attn_implementation="eager", experts_implementation="eager").eval()
    rows, length = 2, 8
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch_for(model, rows, length))
    by_operation = counter.get_flop_counts()["Global"]
    counted = sum(by_operation.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm))

    def operations(linear: Linear) -> float:
        reads_one_position = name in encoder_names and linear.part is Part.HEAD
        vectors = rows if reads_one_position else rows * length
        return 2 * vectors * linear.copies * linear.in_features * linear.out_features * linear.active

    assert sum(map(operations, find_anatomy(model).linears)) == counted


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_of_a_block_is_a_linear(name: str) -> None:
    for block in find_anatomy(tiny(name)).blocks:
        matrices = {tensor.name: tensor for tensor in block.tensors if len(tensor.shape) > 1}
        assert {linear.weight for linear in block.linears} == set(matrices)
        for linear in block.linears:
            tensor = matrices[linear.weight]
            assert linear.copies * linear.in_features * linear.out_features == tensor.numel
            assert (linear.part, linear.block, linear.role) == (tensor.part, tensor.block, tensor.role)


@pytest.mark.parametrize("name", [*decoder_names, *encoder_decoder_names])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding_and_an_untied_one_its_own(name: str, tied: bool) -> None:
    anatomy = find_anatomy(tiny(name, tied=tied))
    embedding = EXPECTED[name].token_embedding
    assert anatomy.tied is tied
    (head,) = anatomy.head_linears
    assert (head.name, head.weight) == ("lm_head", embedding if tied else "lm_head.weight")
    assert (head.in_features, head.out_features) == (anatomy.hidden_size, anatomy.vocab_size)
    assert ("lm_head.weight" in {tensor.name for tensor in anatomy.head}) is not tied
    assert embedding in {tensor.name for tensor in anatomy.embeddings}


@pytest.mark.parametrize("name", encoder_names)
def test_a_classifier_is_not_tied(name: str) -> None:
    anatomy = find_anatomy(tiny(name))
    assert not anatomy.tied
    assert {linear.weight for linear in anatomy.head_linears} == {
        tensor.name for tensor in anatomy.head if len(tensor.shape) == 2
    }


def test_experts_in_one_tensor() -> None:
    experts = {
        linear.name.removeprefix("model.layers.0.mlp."): linear
        for linear in find_anatomy(tiny("mixtral")).blocks[0].linears
        if "mlp" in linear.name
    }
    shapes = {name: (x.in_features, x.out_features, x.copies, x.active) for name, x in experts.items()}
    assert shapes == {
        "gate": (32, 4, 1, 1.0),
        "experts.gate_up_proj": (32, 128, 4, 0.5),
        "experts.down_proj": (64, 32, 4, 0.5),
    }


def test_experts_stored_with_inputs_first() -> None:
    config = AutoConfig.for_model(
        "gpt_oss",
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    anatomy = find_anatomy(skeleton(config, AutoModelForCausalLM))
    shapes = {
        linear.name: (linear.in_features, linear.out_features, linear.copies, linear.active)
        for linear in anatomy.blocks[1].linears
    }
    assert shapes["model.layers.1.mlp.experts.gate_up_proj"] == (32, 48, 8, 0.25)
    assert shapes["model.layers.1.mlp.experts.down_proj"] == (24, 32, 8, 0.25)
    assert anatomy.tensor("model.layers.1.mlp.experts.gate_up_proj_bias").is_bias


def test_experts_as_separate_modules() -> None:
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_experts": 4}
    sparse = {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1}
    config = AutoConfig.for_model("switch_transformers", **sizes, **sparse)
    anatomy = find_anatomy(skeleton(config, AutoModelForSeq2SeqLM))
    experts = [linear for linear in anatomy.linears if ".experts." in linear.name]
    assert len(experts) == (2 + 1) * 4 * 2
    assert {(linear.active, linear.copies) for linear in experts} == {(0.25, 1)}
    assert {linear.active for linear in anatomy.linears if linear not in experts} == {1.0}
