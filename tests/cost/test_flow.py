"""Where gradients flow, at the boundary block above all."""

from __future__ import annotations

import pytest

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.cost import flow
from frostline.plan import BlockMode, Frozen, Full, Lora, Partial, Plan


def carried(family: str, mode: BlockMode) -> set[str]:
    """The matrices of the lowest trained block (number 1) whose input carries a gradient."""
    anatomy = find_anatomy(tiny(family))
    modes = (Frozen(), mode, *[Frozen()] * (len(anatomy.blocks) - 2))
    step = flow(Plan(blocks=modes, head=Frozen() if anatomy.tied else Full()), anatomy)
    below, boundary = step.blocks[:2]
    assert not below.leaves and not boundary.enters and boundary.leaves
    assert not any(matrix.carries or matrix.trained for matrix in below.matrices)
    assert all(matrix.carries for block in step.blocks[2:] for matrix in block.matrices)
    prefix = anatomy.blocks[1].name + "."
    return {matrix.linear.name.removeprefix(prefix) for matrix in boundary.matrices if matrix.carries}


def test_a_trained_norm_before_the_first_matrices_makes_their_inputs_carry() -> None:
    assert {"self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"} <= carried("llama", Full())


def test_where_norms_come_after_the_first_matrices_read_the_frozen_input() -> None:
    assert carried("bert", Full()) == {"attention.output.dense", "intermediate.dense", "output.dense"}


def test_lora_beside_frozen_norms() -> None:
    assert carried("llama", Lora()) == {
        "self_attn.o_proj",
        *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    }


def test_parallel_blocks_hand_no_gradient_from_attention_to_feed_forward() -> None:
    assert carried("gptj", Lora()) == {"attn.out_proj"}


def test_a_trained_feed_forward_asks_nothing_of_attention() -> None:
    assert carried("llama", Partial(train="feed_forward")) == {"mlp.down_proj"}


def test_lora_on_queries_and_values_leaves_keys_without_a_gradient() -> None:
    anatomy = find_anatomy(tiny("llama"))
    step = flow(Plan(blocks=(Lora(), Frozen(), Frozen(), Frozen())), anatomy)
    (attention,) = step.blocks[0].attentions
    assert (attention.query, attention.key, attention.value) == (True, False, True)


def test_a_trained_encoder_reaches_every_cross_attention_and_no_decoder_below() -> None:
    anatomy = find_anatomy(tiny("t5"))
    blocks = (Frozen(), Full(), *[Frozen()] * 5)
    step = flow(Plan(blocks=blocks, head=Frozen()), anatomy)
    decoder = step.blocks[4]
    own, cross = decoder.attentions
    assert not decoder.enters and not own.passes
    assert (cross.query, cross.key, cross.value) == (False, True, True)
    assert step.blocks[5].enters


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="has 2 blocks"):
        flow(Plan(blocks=(Full(), Full())), find_anatomy(tiny("llama")))
