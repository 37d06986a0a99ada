"""Adapters with a bottleneck: their formulas, places and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from frostline.adapters import added_parameters
from frostline.adapters._bottleneck import ACTIVATIONS, BottleneckPart
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.plan import Bottleneck, Frozen, Lora, Plan, Prefix
from hybrids import FAMILIES, PARALLEL, SERIES, added, hybrid, logits, new
from tolerances import rounding


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_what_it_adds_is_the_formula(kind: Any, activation: Any) -> None:
    torch.manual_seed(0)
    options = Bottleneck(kind=kind, bottleneck=2, activation=activation, bias=kind == "series", scale=1.5)
    part, base = BottleneckPart(6, 4, options), torch.nn.Linear(6, 4)
    tokens = torch.randn(3, 6)
    output = base(tokens)
    assert torch.equal(part(base, base, tokens), output), "up begins at 0"
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    read = tokens if kind == "parallel" else output
    within = read @ part.down.weight.T
    if options.bias:
        within = within + part.down.bias
    added_to_it = getattr(torch.nn.functional, activation)(within) @ part.up.weight.T
    if options.bias:
        added_to_it = added_to_it + part.up.bias
    expected = output + 1.5 * added_to_it
    near = rounding(20, expected)  # sums of 6, 6 or 4, and 2 terms, an activation
    torch.testing.assert_close(part(base, base, tokens), expected, atol=near, rtol=0)


PLACES = {
    "llama": ("q_proj", "k_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "bert": ("query", "key", "value"),
}
AFTER = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("attention.output.dense", "output.dense"),
}


@pytest.mark.parametrize("name", PLACES)
def test_by_default_beside_what_makes_queries_keys_and_values_or_after_what_leads_out(name: str) -> None:
    for mode, ends in ((PARALLEL, PLACES[name]), (SERIES, AFTER[name])):
        adapted = hybrid(new(name), [{"index": 1, **mode}])
        paths = sorted({key.partition(".hybrid_parts")[0] for key in added(adapted)})
        assert len(paths) == len(ends)
        assert all(any(path.endswith(end) for path in paths) for end in ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_switched_off_or_with_up_at_0_it_is_the_base_model_bit_for_bit(name: str) -> None:
    base = logits(new(name))
    adapted = hybrid(new(name), [{"index": "0-1", **PARALLEL}, {"index": "2-3", **SERIES}])
    assert not torch.allclose(logits(adapted), base, atol=1e-4)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    for key, parameter in added(adapted).items():
        if ".up." in key:
            parameter.data.zero_()
    assert torch.equal(logits(adapted), base)


@pytest.mark.parametrize("name", [*FAMILIES, "mistral", "phi3", "distilbert", "modernbert"])
def test_counts_are_those_of_the_model(name: str) -> None:
    model = new(name)
    anatomy = find_anatomy(model)
    modes = (
        Lora(r=3, targets="down", gate=True),
        Bottleneck(kind="parallel", bottleneck=5),
        Bottleneck(kind="series", bottleneck=5, bias=True, targets="all"),
        Prefix(length=4),
    )
    for blocks in (modes, (Prefix(gate="none"), Lora(r=1), Prefix(gate="output"), Prefix(length=0))):
        expected = added_parameters(Plan(blocks=blocks), anatomy)
        for index, mode in enumerate(blocks):
            if expected[index]:
                adapted = hybrid(new(name), [{"index": index, **mode.model_dump()}])
                assert sum(parameter.numel() for parameter in added(adapted).values()) == expected[index], mode
    assert added_parameters(Plan(blocks=(Frozen(),) * 4), anatomy) == (0,) * 4


def test_targets_that_match_nothing_give_an_error_that_names_what_is_there() -> None:
    with pytest.raises(UserError, match=r"^block 1: series adapter target 'fc' matches nothing, the block has .*up_pr"):
        hybrid(new("llama"), [{"index": 1, **SERIES, "targets": ["fc"]}])
