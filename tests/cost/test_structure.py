"""What the sizes and names of a block's matrices tell of how it is wired."""

from __future__ import annotations

import pytest
from cost_cases import small

from frostline.anatomy import find_anatomy
from frostline.cost._structure import structures


@pytest.mark.parametrize(
    ("family", "widths"),
    [
        # queries as multiplied, keys and values as computed, output
        ("llama", (32, 16, 16, 32)),
        ("gpt2", (32, 32, 32, 32)),
        ("phi3", (32, 16, 16, 32)),
        ("minicpm3", (48, 48, 32, 32)),
        ("bert", (32, 32, 32, 32)),
    ],
)
def test_attention_widths(family: str, widths: tuple[int, int, int, int]) -> None:
    (attention,) = structures(find_anatomy(small(family)))[0].attentions
    assert (attention.q, attention.k, attention.v, attention.a) == widths


@pytest.mark.parametrize(
    ("family", "inner", "gated"),
    [("llama", 64, True), ("phi3", 64, True), ("gpt2", 128, False), ("mixtral", 2 * 64, True), ("bert", 64, False)],
)
def test_feed_forward_width(family: str, inner: int, gated: bool) -> None:
    shape = structures(find_anatomy(small(family)))[0]
    assert (shape.inner, shape.gated) == (inner, gated)


def test_the_matrix_that_leads_back_is_told_from_those_that_lead_in() -> None:
    for family in ("qwen3_moe", "phi3", "distilbert"):
        shape = structures(find_anatomy(small(family)))[0]
        assert [linear.name.rpartition(".")[2] for linear in shape.leaving] in (["down_proj"], ["lin2"])


def test_an_encoder_decoder_crosses_in_its_decoder_alone() -> None:
    shapes = structures(find_anatomy(small("t5")))
    assert [[attention.cross for attention in shape.attentions] for shape in shapes] == [[False]] * 4 + [
        [False, True]
    ] * 3


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [
        ("llama", True, False),
        ("phi", True, False),
        ("gemma2", True, True),
        ("bert", False, True),
        ("olmo2", False, True),
    ],
)
def test_where_the_norms_are(family: str, first: bool, last: bool) -> None:
    shape = structures(find_anatomy(small(family)))[0]
    assert (shape.normed_first, shape.ends_in_norm) == (first, last)


def test_modernberts_first_block_starts_without_a_norm() -> None:
    shapes = structures(find_anatomy(small("modernbert")))
    assert [shape.normed_first for shape in shapes] == [False, True, True, True]


def test_norms_of_queries_and_keys() -> None:
    norms = structures(find_anatomy(small("qwen3")))[0].norms
    assert [(norm.side, norm.width, norm.groups) for norm in norms if norm.side] == [("q", 32, 4), ("k", 16, 2)]
    latent = structures(find_anatomy(small("minicpm3")))[0].norms
    assert [(norm.side, norm.width) for norm in latent] == [("", 16), ("", 8), ("", 32), ("", 32)]
