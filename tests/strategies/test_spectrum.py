"""Spectrum: of each kind of matrix the share with the highest signal-to-noise ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from anatomies import MODELS, anatomy, plain
from probes import MadeUp, kinds

from frostline.anatomy import select
from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Partial, Plan
from frostline.run import make_plan
from frostline.strategies import Situation, make_selection

ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def plan(model: str, signals: dict[str, Any], **options: Any) -> Plan:
    made_up = MadeUp({"snr": [], **signals})
    chosen = make_selection("spectrum", Situation(anatomy(model), measure=made_up), options).schedule.first
    assert made_up.asked == [(("snr",), 1)], "weights only"
    return chosen


def of_llama(attention: list[float], feed_forward: list[float], **options: Any) -> list[set[str]]:
    """What trains in each of the four blocks, where all matrices of a part have the same ratio."""
    signals = {f"snr.self_attn.{name}": attention for name in ATTENTION}
    signals |= {f"snr.mlp.{name}": feed_forward for name in FEED_FORWARD}
    blocks = plan("llama, untied", signals, **options).blocks
    return [{name.split(".")[0] for name in block.model_dump().get("train", ())} for block in blocks]


def test_the_top_half_of_each_kind() -> None:
    assert of_llama([4, 1, 3, 2], [1, 2, 3, 4]) == [{"self_attn"}, set(), {"self_attn", "mlp"}, {"mlp"}]


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 1), (0.37, 1), (0.38, 2), (0.75, 3), (1.0, 4)])
def test_the_share_is_rounded_and_at_least_one(share: float, count: int) -> None:
    chosen = of_llama([4, 3, 2, 1], [4, 3, 2, 1], share=share)
    assert chosen == [{"self_attn", "mlp"}] * count + [set()] * (4 - count)


def test_of_equals_the_upper_block_trains() -> None:
    assert of_llama([1, 1, 1, 1], [2, 1, 2, 1]) == [{"mlp"}, set(), {"self_attn", "mlp"}, {"self_attn"}]


def test_no_noise_at_all_comes_first() -> None:
    assert of_llama([9, math.inf, 1, 2], [9, math.inf, 1, 2], share=0.25)[1] == {"self_attn", "mlp"}


def test_a_block_of_which_nothing_is_chosen_is_frozen() -> None:
    signals = {f"snr.{kind}": [1, 2, 3, 4] for kind in kinds(anatomy("llama, untied"), 0)}
    chosen = plan("llama, untied", signals)
    modules = (*(f"self_attn.{name}" for name in ATTENTION), *(f"mlp.{name}" for name in FEED_FORWARD))
    trained = chosen.blocks[2]
    assert isinstance(trained, Partial)
    assert isinstance(trained.train, tuple)
    assert chosen.blocks == (Frozen(), Frozen(), trained, trained)
    assert set(trained.train) == set(modules)
    assert chosen.boundary == 2
    assert (chosen.embeddings, chosen.final_norm, chosen.head) == (Frozen(), Full(), Full())


def test_experts_in_one_tensor_count_with_their_mean() -> None:
    found = anatomy("mixtral, untied")
    assert "mlp.experts.gate_up_proj" in kinds(found, 0)
    signals = {f"snr.{kind}": [4, 3, 2, 1] for kind in kinds(found, 0)}
    signals |= {"snr.mlp.experts.gate_up_proj": [1, 2, 8, 1], "snr.mlp.experts.down_proj": [5, 3, 1, 7]}  # 3 2.5 4.5 4
    chosen = plan("mixtral, untied", signals)
    assert ["mlp.experts" in block.model_dump().get("train", ()) for block in chosen.blocks] == [
        False,
        False,
        True,
        True,
    ]
    trained = {item.tensor.name for item in select(chosen, found)}
    assert "model.layers.2.mlp.experts.down_proj" in trained
    assert "model.layers.0.mlp.experts.down_proj" not in trained


def test_kinds_that_only_some_blocks_have_are_ranked_among_those() -> None:
    found = anatomy("t5, untied")
    cross = [None, None, None, None, 3, 2, 1]
    signals: dict[str, Any] = {}
    for block in found.blocks:
        for kind in kinds(found, block.index):
            signals[f"snr.{kind}"] = cross if "EncDec" in kind else [7, 6, 5, 4, 3, 2, 1]
    encoder_only = {kind for kind in kinds(found, 0) if kind not in kinds(found, 4)}
    for kind in encoder_only:
        signals[f"snr.{kind}"] = [4, 3, 2, 1, None, None, None]
    for kind in set(kinds(found, 4)) - set(kinds(found, 0)):
        signals[f"snr.{kind}"] = cross
    chosen = [set(block.model_dump().get("train", ())) for block in plan("t5, untied", signals).blocks]
    has_cross = [any("EncDec" in name for name in names) for names in chosen]
    assert has_cross == [False] * 4 + [True, True, False], "two of three: 1.5 rounds up"


@pytest.mark.parametrize("model", ["llama, untied", "gpt2, tied", "qwen2 classifier"])
def test_against_numpy(model: str) -> None:
    made, found = MODELS[model](), anatomy(model)
    weights = dict(made.named_parameters())
    expected: dict[int, set[str]] = {index: set() for index in range(4)}
    for kind in kinds(found, 0):
        ratios = []
        for block in found.blocks:
            matrix = weights[f"{block.name}.{kind}.weight"].detach().double().numpy()
            values = np.linalg.svd(matrix, compute_uv=False)
            low, high = np.percentile(values, [25, 75])
            epsilon = (high - low) / 1.349 * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
            noise = values[values <= epsilon].sum()
            ratios.append((values[values > epsilon].sum() / noise / values.max() if noise else math.inf, block.index))
        for _, index in sorted(ratios)[2:]:
            expected[index].add(kind)
    classes = "classifier" in model
    data = [{"input_ids": [5, 6, 7], "labels": 1 if classes else [5, 6, 7]}]
    chosen = make_plan(made, "spectrum", data=data)
    assert {i: set(block.model_dump().get("train", ())) for i, block in enumerate(chosen.blocks)} == expected
    matrices = {f"{found.blocks[i].name}.{kind}.weight" for i, modules in expected.items() for kind in modules}
    assert matrices <= {item.tensor.name for item in select(chosen, found)}


def test_refusals() -> None:
    with pytest.raises(UserError, match="give --task"):
        make_selection("spectrum", Situation(plain(4)))
    with pytest.raises(UserError, match=r"^strategy_options of 'spectrum': share: it should be"):
        make_selection("spectrum", Situation(plain(4)), {"share": 1.5})
