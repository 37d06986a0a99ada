"""Learning rates per block: by relative gradient norm, and falling from the top."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from anatomies import anatomy, plain
from probes import MadeUp

from architectures import tiny
from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Plan
from frostline.run import make_plan
from frostline.strategies import Situation, make_selection


def surgical(*norms: float, name: str = "surgical") -> Plan:
    situation = Situation(plain(len(norms)), measure=MadeUp({"relative_gradient_norm": norms}))
    return make_selection(name, situation).schedule.first


def test_the_rate_is_proportional_and_one_for_the_largest() -> None:
    assert surgical(0.2, 0.8, 0.4).blocks == (Full(lr_scale=0.25), Full(), Full(lr_scale=0.5))
    assert surgical(0.3, 0.3).blocks == (Full(), Full())


def test_a_block_without_a_gradient_is_frozen() -> None:
    chosen = surgical(0.0, 0.5, 0.0, 1.0)
    assert chosen.blocks == (Frozen(), Full(lr_scale=0.5), Frozen(), Full())
    assert chosen.boundary == 1
    with pytest.raises(UserError, match=r"^strategy 'surgical': the loss has no gradient in any block"):
        surgical(0.0, 0.0)


def test_a_block_of_zeros_trains_at_the_full_rate() -> None:
    assert surgical(0.2, math.inf, 0.4).blocks == (Full(lr_scale=0.5), Full(), Full())
    assert surgical(math.inf, 0.0).blocks == (Full(), Frozen())


def test_lora_keeps_the_rates() -> None:
    chosen = surgical(0.2, 0.0, 0.8, name="surgical+lora").blocks
    assert [block.mode for block in chosen] == ["lora", "frozen", "lora"]
    assert [block.model_dump().get("lr_scale") for block in chosen] == [0.25, None, 1.0]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_against_a_plain_backward_pass(name: str) -> None:
    model = tiny(name)
    ids = torch.randint(3, model.config.vocab_size, (4, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 1, 0]) if name == "bert" else ids
    data = [{"input_ids": row.tolist(), "labels": label.tolist()} for row, label in zip(ids, labels, strict=True)]
    model.eval()
    model(input_ids=ids, labels=labels).loss.backward()
    ratios = []
    for layer in model.model.layers if name == "llama" else model.bert.encoder.layer:
        gradient, weight = (
            math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors))
            for tensors in ([p.grad for p in layer.parameters()], [p.detach() for p in layer.parameters()])
        )
        ratios.append(gradient / weight)
    model.zero_grad()
    scales = [block.model_dump()["lr_scale"] for block in make_plan(model, "surgical", data=data).blocks]
    assert scales == pytest.approx([ratio / max(ratios) for ratio in ratios], rel=1e-4)
    assert len(set(scales)) == 4


def test_what_surgical_measures() -> None:
    made_up = MadeUp({"relative_gradient_norm": [1.0, 2.0]})
    make_selection("surgical", Situation(plain(2), measure=made_up), {"rows": 32})
    assert made_up.asked == [(("relative_gradient_norm",), 32)]
    with pytest.raises(UserError, match="give --task"):
        make_selection("surgical", Situation(plain(2)))


def discriminative(situation: Situation, **options: Any) -> list[float]:
    chosen = make_selection("discriminative", situation, options).schedule.first
    assert (chosen.strategy, chosen.embeddings.mode) == ("discriminative", "frozen")
    return [block.model_dump()["lr_scale"] for block in chosen.blocks]


def test_rates_fall_from_the_top() -> None:
    assert discriminative(Situation(plain(4))) == pytest.approx([1 / 17.576, 1 / 6.76, 1 / 2.6, 1])
    assert discriminative(Situation(plain(3)), decay=2) == [0.25, 0.5, 1]
    assert discriminative(Situation(plain(3)), decay=1) == [1, 1, 1]
    joint = discriminative(Situation(anatomy("t5, tied")))
    assert joint == pytest.approx([2.6**-depth for depth in range(6, -1, -1)]), "encoder and decoder jointly"


def test_a_decay_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^strategy_options of 'discriminative': decay: it should be greater"):
        discriminative(Situation(plain(3)), decay=0.5)
    with pytest.raises(UserError, match=r"^strategy 'discriminative': .*lr_scale"):
        discriminative(Situation(plain(40)), decay=1e9)
