"""Semantic-aware freezing against methods.md 3, by hand and against a plain forward pass; its ablations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from anatomies import plain
from probes import MadeUp, Values, shift, vds

from architectures import tiny
from frostline.core.errors import UserError
from frostline.plan import Plan
from frostline.run import make_plan
from frostline.strategies import Situation, make_selection

LEVELS = (1.0, 0.5, 0.3, 0.1, 0.09)  # gains .5 .2 .2 .01; logarithms .69 .51 1.10 .11


def plan(name: str, signals: dict[str, Values], seed: int = 0, /, **options: Any) -> Plan:
    depth = len(next(iter(signals.values())))
    chosen = make_selection(name, Situation(plain(depth), seed, measure=MadeUp(signals)), options).schedule.first
    assert chosen.strategy == name
    return chosen


def frozen(name: str, signals: dict[str, Values], seed: int = 0, /, **options: Any) -> set[int]:
    chosen = plan(name, signals, seed, **options)
    return {index for index, block in enumerate(chosen.blocks) if block.mode == "frozen"}


def refusal(name: str, situation: Situation, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_selection(name, situation, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(model: Any, count: int = 6, length: int = 5, classes: bool = False) -> list[dict[str, Any]]:
    """Rows of one length; class labels, or the last token labelled."""
    ids = torch.randint(3, model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(1))
    labels = [i % 2 for i in range(count)] if classes else [[-100] * (length - 1) + row[-1:] for row in ids.tolist()]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids.tolist(), labels, strict=True)]


def test_the_papers_worked_figure() -> None:
    """L = 4 and k* = 2: the first two are frozen, 3 and 4 train."""
    assert frozen("semantic", vds(1.0, 0.9, 0.4, 0.35, 0.3)) == {0, 1}


def test_the_forms_of_the_gain_may_cut_elsewhere() -> None:
    assert frozen("semantic", vds(*LEVELS)) == {0}
    assert frozen("semantic", vds(*LEVELS), gain="difference") == {0}
    assert frozen("semantic", vds(*LEVELS), gain="log") == {0, 1, 2}


@pytest.mark.parametrize(
    ("levels", "count"),
    [
        ((1.0, 0.75, 0.5, 0.25), 1),  # equal gains: the first
        ((1.0, 1.0, 0.75, 0.5), 2),
        ((1.0, 0.9, 0.8, 0.1), 2),  # the largest at the last block: one is left to train
        ((0.1, 0.2, 0.4, 0.8), 1),  # every gain is negative: the least loss
    ],
)
def test_ties_and_ends(levels: tuple[float, ...], count: int) -> None:
    assert frozen("semantic", vds(*levels)) == set(range(count))


@pytest.mark.parametrize("most", range(1, 7))
def test_a_budget_of_blocks_raises_the_cut(most: int) -> None:
    """k* = max(k*, L - B), with k* = 2 of 5."""
    assert frozen("semantic", vds(1.0, 0.9, 0.4, 0.3, 0.2, 0.1), most_blocks=most) == set(range(max(2, 5 - most)))


def test_which_deviation_decides() -> None:
    both = vds(1.0, 0.9, 0.8, 0.1, 0.0001) | shift(9.0, 3.0, 2.0, 1.0)
    assert frozen("semantic", both) == {0, 1, 2}, "vds where it was measured"
    assert frozen("semantic", both, deviation="vds") == {0, 1, 2}
    assert frozen("semantic", both, deviation="shift") == {0, 1}, "the first block's shift has no gain"
    assert frozen("semantic", shift(9.0, 3.0, 2.0, 1.0)) == {0, 1}, "shift where there is no vds"


@pytest.mark.parametrize("name", ["semantic", "semantic-threshold", "semantic-reversed", "semantic-random"])
def test_what_is_measured(name: str) -> None:
    made_up = MadeUp(vds(*LEVELS) | shift(4.0, 3.0, 2.0, 1.0))
    situation = Situation(plain(4), measure=made_up)
    make_selection(name, situation)
    make_selection(name, situation, {"deviation": "shift", "rows": 64})
    assert made_up.asked == [(None, 256), (("shift",), 64)], "once each"


def test_the_threshold_need_not_leave_a_contiguous_top() -> None:
    signals = vds(1.0, 0.9, 0.5, 0.4, 0.1)  # gains .1 .4 .1 .3, mean .225
    assert frozen("semantic-threshold", signals) == {0, 2}
    assert plan("semantic-threshold", signals).boundary == 1
    assert frozen("semantic-threshold", signals, threshold=0.35) == {0, 2, 3}
    assert frozen("semantic-threshold", vds(1.0, 0.75, 0.25, 0.0), threshold=0.5) == {0, 2}, "at it counts"
    assert frozen("semantic-threshold", vds(*LEVELS), gain="log", threshold=0.6) == {1, 3}


def test_the_threshold_leaves_one_at_least_and_never_all() -> None:
    signals = vds(1.0, 0.9, 0.5, 0.4, 0.1)
    assert frozen("semantic-threshold", signals, threshold=5.0) == {0, 2, 3}, "the largest gain trains"
    assert frozen("semantic-threshold", vds(1.0, 0.9, 0.5, 0.35, 0.1), threshold=-1.0) == {0}, "the least is frozen"
    assert frozen("semantic-threshold", vds(1.0, 0.75, 0.5, 0.25, 0.0)) == {0}, "of equals the lowest"
    assert frozen("semantic-threshold", vds(1.0, 0.75, 0.5, 0.25, 0.0), threshold=9.0) == {0, 1, 2}, "... the upper"


def test_a_block_without_a_gain_is_below_every_threshold() -> None:
    assert frozen("semantic-threshold", shift(9.0, 3.0, 2.0, 1.0), threshold=-100) == {0}
    assert frozen("semantic-threshold", shift(4.0, 3.0, 3.5, 1.0)) == {0, 2}  # 1, -.5, 2.5: mean 1


def test_reversed_freezes_as_many_of_the_highest_deviation() -> None:
    signals = vds(1.0, 0.6, 0.2, 0.9, 0.8, 0.7)  # gains .4 .4 -.7 .1 .1
    assert frozen("semantic", signals) == {0}
    assert frozen("semantic-reversed", signals) == {2}
    assert frozen("semantic-reversed", signals, most_blocks=2) == {2, 3, 4}
    assert frozen("semantic-reversed", shift(1.0, 5.0, 1.0, 5.0)) == {0, 1, 3}, "semantic freezes three; the lowest tie"
    assert frozen("semantic-reversed", vds(*LEVELS), gain="log") == {0, 1, 2}, "a falling deviation: semantic itself"


def test_random_draws_as_many_as_random_would() -> None:
    signals = vds(*(1.0, 0.9, 0.8, 0.7), 0.1, *(0.09, 0.08, 0.07, 0.06))
    assert frozen("semantic", signals) == {0, 1, 2, 3}
    for seed in range(5):
        drawn = make_selection("random50", Situation(plain(8), seed)).schedule.first
        expected = {index for index, block in enumerate(drawn.blocks) if block.mode == "frozen"}
        assert frozen("semantic-random", signals, seed) == expected
    assert len({tuple(sorted(frozen("semantic-random", signals, seed))) for seed in range(20)}) > 10
    assert len(frozen("semantic-random", signals, 1, most_blocks=1)) == 7


def test_lora_goes_beside_what_semantic_trains() -> None:
    chosen = plan("semantic+lora", vds(1.0, 0.9, 0.4, 0.35, 0.3), lora={"r": 2}, most_blocks=1)
    assert [block.mode for block in chosen.blocks] == ["frozen"] * 3 + ["lora"]
    assert chosen.blocks[3].model_dump()["r"] == 2


@pytest.mark.parametrize("form", ["difference", "log"])
def test_vds_against_a_plain_forward_pass(form: str) -> None:
    """The cut from a pseudo-inverse of the head and the model's own hidden states, one row at a time."""
    model = tiny("llama", tied=False, num_hidden_layers=6)
    data = rows(model)
    pseudo_inverse = torch.linalg.pinv(model.lm_head.weight.detach().double())  # [d, V]
    levels = torch.zeros(7, dtype=torch.float64)
    for row in data:
        with torch.no_grad():
            states = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
            normed = [*(model.model.norm(state) for state in states[:-1]), states[-1]]
        basis = pseudo_inverse[:, row["labels"][-1]]
        levels += torch.stack([1 - torch.cosine_similarity(h[0, -2].double(), basis, dim=0) for h in normed])
    levels /= len(data)
    gains = [float(a - b if form == "difference" else (a / b).log()) for a, b in pairwise(levels)]
    count = min(gains.index(max(gains)) + 1, 5)
    chosen = make_plan(model, "semantic", data=data, options={"deviation": "vds", "gain": form})
    assert [block.mode for block in chosen.blocks] == ["frozen"] * count + ["full"] * (6 - count)


def test_an_encoder_is_cut_by_shift_at_its_first_token() -> None:
    model = tiny("bert", num_hidden_layers=6)
    data = rows(model, classes=True)
    with torch.no_grad():
        states = model(torch.tensor([row["input_ids"] for row in data]), output_hidden_states=True).hidden_states
    levels = [float((after - before)[:, 0].norm(dim=-1).mean()) for before, after in pairwise(states)]
    gains = [before - after for before, after in pairwise(levels)]
    count = min(gains.index(max(gains)) + 2, 5)
    chosen = make_plan(model, "semantic", data=data)
    assert [block.mode for block in chosen.blocks] == ["frozen"] * count + ["full"] * (6 - count)
    assert chosen.head.mode == "full"


def test_an_encoder_decoder_is_cut_by_shift() -> None:
    model = tiny("t5")
    chosen = make_plan(model, "semantic", data=rows(model))
    assert 2 <= chosen.boundary < 7, "the first block of a stack has no gain"
    assert len(chosen.blocks) == 7


def test_refusals() -> None:
    for name in ("semantic", "semantic-threshold", "semantic-reversed", "semantic-random", "semantic+lora"):
        assert "give --task" in refusal(name, Situation(plain(4)))
        one = Situation(plain(1), measure=MadeUp(vds(1.0, 0.5)))
        assert refusal(name, one) == "the model has one block, so there is no semantic cut: use all, head or lora"
    situation = Situation(plain(4), measure=MadeUp(vds(*LEVELS)))
    assert refusal("semantic", situation, row=3) == (
        "strategy_options of 'semantic': unknown key 'row': did you mean 'rows'? known: deviation, gain, most_blocks, "
        "rows"
    )
    assert refusal("semantic", situation, deviation="vsd").startswith("strategy_options of 'semantic': deviation: it ")
    assert refusal("semantic", situation, most_blocks=0).startswith("strategy_options of 'semantic': most_blocks: it ")
    assert "unknown key 'most_blocks'" in refusal("semantic-threshold", situation, most_blocks=2)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_vds_where_there_is_no_basis(name: str) -> None:
    model = tiny(name)
    with pytest.raises(UserError, match=r"^vds: .*: use shift$"):
        make_plan(model, "semantic", data=rows(model, classes=name == "bert"), options={"deviation": "vds"})
