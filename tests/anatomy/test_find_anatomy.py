"""The anatomy of every tested architecture, against names written by hand and against its own forward."""

from __future__ import annotations

import pytest
from expected_anatomies import EXPECTED, spelled_out

from architectures import (
    ARCHITECTURES,
    AUTO_CLASSES,
    BLOCKS,
    batch_for,
    decoder_names,
    encoder_decoder_names,
    encoder_names,
    natural_task,
    tiny,
)
from frostline.anatomy import Anatomy, Block, Part, Role, find_anatomy, get_block, skeleton

NAMES = list(ARCHITECTURES)
CASES = [
    *((name, natural_task(name)) for name in NAMES),
    *((name, "classification") for name in decoder_names),
    *((name, "masked") for name in encoder_names),
]


def test_every_architecture_has_its_expectation() -> None:
    assert list(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_final_norm_and_head_are_the_expected_ones(name: str) -> None:
    model = tiny(name)
    anatomy = find_anatomy(model)
    expected = EXPECTED[name]
    assert {t.name for t in anatomy.embeddings} == {expected.token_embedding, *expected.more_embeddings}
    assert {t.name for t in anatomy.final_norm} == set(expected.final_norm)
    assert {t.name for t in anatomy.head} == set(expected.head)
    assert model.get_parameter(expected.token_embedding) is model.get_input_embeddings().weight
    assert anatomy.tensor(expected.token_embedding).shape == (anatomy.vocab_size, anatomy.hidden_size)
    assert anatomy.num_heads == 4
    assert (anatomy.model_class, anatomy.model_type) == (type(model).__name__, model.config.model_type)
    assert anatomy.encoder_decoder == (name in encoder_decoder_names)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_numbered_in_the_order_in_which_tokens_pass_them(name: str) -> None:
    model = tiny(name).eval()
    anatomy = find_anatomy(model)
    paths = [f"{EXPECTED[name].blocks}.{i}" for i in range(BLOCKS)]
    if name == "t5":
        paths += [f"decoder.block.{i}" for i in range(3)]
    assert [block.name for block in anatomy.blocks] == paths
    assert [block.index for block in anatomy.blocks] == list(range(len(paths)))

    passed: list[int] = []
    for block in anatomy.blocks:
        get_block(model, anatomy, block.index).register_forward_pre_hook(
            lambda module, inputs, index=block.index: passed.append(index)
        )
    model(**batch_for(model))
    assert passed == list(range(len(paths)))


@pytest.mark.parametrize("name", NAMES)
def test_stacks(name: str) -> None:
    stacks = [block.stack for block in find_anatomy(tiny(name)).blocks]
    if name in encoder_decoder_names:
        assert stacks == ["encoder"] * BLOCKS + ["decoder"] * 3
    else:
        assert stacks == ["encoder" if name in encoder_names else "decoder"] * BLOCKS


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_parameter_lies_in_exactly_one_part(name: str, task: str) -> None:
    model = tiny(name, task)
    anatomy = find_anatomy(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert len(anatomy.tensors) == len(shapes)
    assert {tensor.name: tensor.shape for tensor in anatomy.tensors} == shapes
    assert anatomy.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    for part, tensors in (
        (Part.EMBEDDINGS, anatomy.embeddings),
        (Part.FINAL_NORM, anatomy.final_norm),
        (Part.HEAD, anatomy.head),
    ):
        assert all((t.part, t.block, t.role) == (part, None, None) for t in tensors)
        assert all(anatomy.block_of(t.name) is None for t in tensors)
    tables = {tensor.name for tensor in anatomy.embeddings}
    for block in anatomy.blocks:
        module = get_block(model, anatomy, block.index)
        own = {f"{block.name}.{path}": parameter for path, parameter in module.named_parameters()}
        assert {tensor.name for tensor in block.tensors} == set(own) - tables
        assert block.parameters == sum(own[name].numel() for name in set(own) - tables)
        assert all((t.part, t.block) == (Part.BLOCK, block.index) for t in block.tensors)
        assert all(anatomy.block_of(t.name) is block for t in block.tensors)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_skeleton_has_the_anatomy_of_the_real_model(name: str, task: str) -> None:
    model = tiny(name, task)
    bare = skeleton(model.config, AUTO_CLASSES[task])
    assert all(parameter.is_meta for parameter in bare.parameters())
    assert find_anatomy(bare) == find_anatomy(model)


@pytest.mark.parametrize("name", NAMES)
def test_attention_and_feed_forward_are_the_expected_ones(name: str) -> None:
    anatomy = find_anatomy(tiny(name))
    for block in anatomy.blocks[:BLOCKS]:
        assert _matrices(block, Role.ATTENTION) == spelled_out(EXPECTED[name].attention)
        assert _matrices(block, Role.FEED_FORWARD) == spelled_out(EXPECTED[name].feed_forward)
    _check_vectors(anatomy)


def test_a_decoder_block_of_t5_has_two_attentions() -> None:
    for block in find_anatomy(tiny("t5")).blocks[BLOCKS:]:
        both = spelled_out("layer.0.SelfAttention.{q,k,v,o}.weight")
        both |= spelled_out("layer.1.EncDecAttention.{q,k,v,o}.weight")
        assert _matrices(block, Role.ATTENTION) == both
        assert _matrices(block, Role.FEED_FORWARD) == spelled_out("layer.2.DenseReluDense.{wi,wo}.weight")


def _matrices(block: Block, role: Role) -> set[str]:
    names = {tensor.name for tensor in block.tensors if tensor.role is role and len(tensor.shape) > 1}
    return {name.removeprefix(f"{block.name}.") for name in names}


def _check_vectors(anatomy: Anatomy) -> None:
    """Vectors are the norms' or biases of the matrices beside them; only they are."""
    for block in anatomy.blocks:
        roles = {tensor.name: tensor.role for tensor in block.tensors}
        for tensor in block.tensors:
            owner, _, piece = tensor.name.rpartition(".")
            assert tensor.is_bias == (piece == "bias")
            in_norm = "norm" in owner.split(".")[-1].lower() or owner.split(".")[-1] in ("ln_1", "ln_2")
            assert (tensor.role is Role.NORM) == in_norm
            if tensor.is_bias:
                assert tensor.role is roles[f"{owner}.weight"]
