"""`+lora`: low-rank updates where a strategy would train, its options, and what it makes of other modes."""

from __future__ import annotations

from typing import Any

import pytest
from anatomies import anatomy, plain

from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Lora, Plan
from frostline.strategies import Situation, choose_schedule

SITUATION = Situation(plain(4))


def plan(name: str, situation: Situation = SITUATION, **options: Any) -> Plan:
    chosen = choose_schedule(name, situation, options).next(0, {})
    assert chosen is not None
    return chosen


def test_trained_blocks_are_adapted_and_nothing_else_trains() -> None:
    chosen = plan("bot50+lora")
    assert chosen == Plan(
        strategy="bot50+lora",
        blocks=(Frozen(), Frozen(), Lora(), Lora()),
        final_norm=Frozen(),
        head=Frozen(),
    )
    assert plan("all+lora").embeddings == Frozen()
    assert plan("bot50+lora", Situation(anatomy("bert classifier"))).head == Full(), "a task head trains"


def test_options_of_the_adapter_and_of_the_strategy() -> None:
    chosen = plan("discriminative+lora", lora={"r": 4, "targets": "all", "lr_scale": 0.5}, decay=2)
    assert chosen.blocks == tuple(Lora(r=4, targets="all", lr_scale=scale) for scale in (0.0625, 0.125, 0.25, 0.5))


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("bot50+lora", {"lora": {"rank": 4}}, "strategy_options.lora: unknown key 'rank'"),
        ("bot50+lora", {"lora": {"r": 0}}, "strategy_options.lora: r: it should be greater than 0 (given: 0)"),
        ("bot50+lora", {"r": 4}, "strategy_options of 'bot50+lora': unknown key 'r'"),
        ("bot50", {"lora": {"r": 4}}, "strategy_options of 'bot50': unknown key 'lora'"),
        ("head+lora", {}, "strategy 'head+lora': 'head' trains no block that LoRA could go beside"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(name, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
