"""`+lora`: low-rank updates where a strategy would train, its options, and what it makes of other modes."""

from __future__ import annotations

from typing import Any

import pytest
from anatomies import anatomy, plain

from frostline.core.errors import UserError
from frostline.plan import Bottleneck, Frozen, Full, Lora, Peft, Plan, Prefix
from frostline.strategies import ADDITIONS, Situation, make_selection

SITUATION = Situation(plain(4))


def plan(name: str, situation: Situation = SITUATION, **options: Any) -> Plan:
    return make_selection(name, situation, options).schedule.first


def test_trained_blocks_are_adapted_and_nothing_else_trains() -> None:
    chosen = plan("bot50+lora")
    assert chosen == Plan(
        strategy="bot50+lora",
        blocks=(Frozen(), Frozen(), Lora(targets="all"), Lora(targets="all")),
        final_norm=Frozen(),
        head=Frozen(),
    )
    assert plan("all+lora").embeddings == Frozen()
    assert plan("bot50+lora", Situation(anatomy("bert classifier"))).head == Full(), "a task head trains"


def test_anything_can_be_added() -> None:
    assert plan("bot50+prefix").blocks == (Frozen(), Frozen(), *[Prefix(length=30, gate="none")] * 2)
    small = plan("bot50+parallel-adapter", **{"parallel-adapter": {"bottleneck": 4}})
    assert small.blocks[3] == Bottleneck(kind="parallel", bottleneck=4)
    assert plan("top50+ia3").blocks[0] == Peft(method="ia3")
    halves = plan("hierarchical+series-adapter")
    assert [block.targets for block in halves.blocks if isinstance(block, Bottleneck)] == [
        "attention",
        "default",
        "default",
    ]


@pytest.mark.parametrize("name", list(ADDITIONS))
def test_every_addition_is_a_strategy_of_its_own(name: str) -> None:
    everywhere, added = plan(name), plan(f"all+{name}")
    if name == "lora":  # beside a strategy it is on all matrices; the papers' baseline is on queries and values
        assert {block.targets for block in everywhere.blocks if isinstance(block, Lora)} == {"default"}
        assert added == plan("all+lora", lora={"targets": "all"}) != plan("all+lora", lora={"targets": "default"})
        added = plan("all+lora", lora={"targets": "default"})
    assert everywhere.model_copy(update={"strategy": f"all+{name}"}) == added
    assert len({block.mode for block in everywhere.blocks}) == 1
    assert everywhere.boundary == 0


def test_options_of_the_adapter_and_of_the_strategy() -> None:
    chosen = plan("discriminative+lora", lora={"r": 4, "targets": "all", "lr_scale": 0.5}, decay=2)
    assert chosen.blocks == tuple(Lora(r=4, targets="all", lr_scale=scale) for scale in (0.0625, 0.125, 0.25, 0.5))


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("bot50+lora", {"lora": {"rank": 4}}, "strategy_options.lora: unknown key 'rank'"),
        ("bot50+lora", {"lora": {"r": 0}}, "strategy_options.lora: r: it should be greater than 0 (given: 0)"),
        ("bot50+lora", {"r": 4}, "strategy_options of 'bot50+lora': r is an option of lora: use lora.r"),
        ("bot50", {"lora": {"r": 4}}, "strategy_options of 'bot50': unknown key 'lora'"),
        ("head+lora", {}, "strategy 'head+lora': 'head' trains no block that lora could be added to: use lora,"),
        (
            "bot50+parallel-adapter",
            {"parallel-adapter": {"kind": "series"}},
            "strategy_options.parallel-adapter: kind: the strategy's name already sets it",
        ),
        (
            "hierarchical+prefix",
            {},
            "+prefix: block 1 trains in part, but prefix needs a whole block: use +lora",
        ),
        (
            "dora",
            {"r": 2},
            "strategy_options of 'dora': unknown key 'r': known: lr_scale, options, targets; options of PEFT's",
        ),
        (
            "adt-l50+adalora",
            {},
            "strategy 'adt-l50+adalora': AdaLoRA divides its ranks among all blocks, so no block may freeze",
        ),
        ("bot50+lora", {"lora": 3}, "strategy_options.lora: options have to be a mapping"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(name, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
