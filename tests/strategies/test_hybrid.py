"""HLPT and H2LPT: which blocks get LoRA and which a prefix, in every form of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anatomies import plain
from transformers import AutoConfig, AutoModelForCausalLM

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.core.errors import UserError
from frostline.cost import trainable_parameters
from frostline.plan import Lora, Plan, Prefix
from frostline.strategies import Situation, make_selection

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "models"


def plan(name: str, anatomy: Anatomy, **options: Any) -> Plan:
    return make_selection(name, Situation(anatomy), options).schedule.first


def tiers(name: str, blocks: int, **options: Any) -> str:
    """L for LoRA, P for a prefix, . for a frozen block."""
    letters = {"lora": "L", "prefix": "P", "frozen": "."}
    return "".join(letters[mode.mode] for mode in plan(name, plain(blocks), **options).blocks)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("hlpt", {}, "LLLLLLPP"),
        ("h2lpt", {}, "LLL....P"),
        ("h2lpt", {"kept": "inner"}, "...LLLP."),
        ("h2lpt", {"kept": "lower"}, "LLL...P."),
        ("h2lpt", {"kept": "upper"}, "...LLL.P"),
        ("hlpt(5,3)", {}, "LLLLLPPP"),
        ("hlpt(1,1)", {}, "L......P"),
        ("hlpt(0,8)", {}, "PPPPPPPP"),
        ("hlpt", {"swapped": True}, "PPPPPPLL"),
        ("hlpt", {"low": 0.25, "high": 0.5}, "LL..PPPP"),
    ],
)
def test_tiers(name: str, options: dict[str, Any], expected: str) -> None:
    assert tiers(name, 8, **options) == expected


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 6, 18, 26, 32])
def test_shares_that_sum_to_one_are_all_blocks_of_any_model(blocks: int) -> None:
    found = tiers("hlpt", blocks)
    assert found == "L" * found.count("L") + "P" * found.count("P")
    assert abs(found.count("P") - blocks / 4) <= 0.5


def test_options_of_one_kind_keep_the_others() -> None:
    chosen = plan("hlpt", plain(4), lora={"gate": False, "targets": "default"}, prefix={"gate": "none"})
    assert chosen.blocks[0] == Lora(r=8, alpha=16, dropout=0, gate=False)
    assert chosen.blocks[3] == Prefix(length=20, gate="none")


@pytest.mark.parametrize(
    ("model", "name", "parameters"),
    [
        ("llama-2-7b", "prefix", 7_864_320),
        ("llama-2-13b", "prefix", 12_288_000),
        ("llama-2-7b", "lora", 4_194_304),
        ("llama-2-13b", "lora", 6_553_600),
        ("llama-2-7b", "hlpt", 4_507_680),
        ("llama-2-13b", "hlpt", 7_060_520),
        ("llama-2-7b", "h2lpt", 2_253_840),
        ("llama-2-13b", "h2lpt", 3_530_260),
        ("llama-2-7b", "parallel-adapter", 201_326_592),
    ],
)
def test_the_papers_parameter_counts(model: str, name: str, parameters: int) -> None:
    """methods.md 4, from a config alone."""
    anatomy = of_recipe(model)
    assert trainable_parameters(plan(name, anatomy), anatomy) == parameters


def of_recipe(model: str) -> Anatomy:
    return find_anatomy(skeleton(AutoConfig.from_pretrained(RECIPES / model), AutoModelForCausalLM))


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("hlpt(6,3)", {}, "strategy 'hlpt': tiers of 6 and 3 blocks do not fit a model of 8"),
        ("hlpt(0,0)", {}, "strategy 'hlpt': tiers of 0 and 0 blocks do not fit a model of 8"),
        (
            "hlpt",
            {"kept": "inner"},
            "strategy_options of 'hlpt': kept: hlpt trains both tiers whole: use h2lpt",
        ),
        ("hlpt(2,1)", {"low": 2}, "strategy_options: low: the name 'hlpt(2,1)' already sets it"),
        (
            "hlpt",
            {"low": 2.5},
            "strategy_options of 'hlpt': low: use a share of the blocks, above 0 and below 1, or a ",
        ),
        ("hlpt", {"lora": {"rank": 2}}, "strategy_options of 'hlpt': lora: unknown key 'rank'"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(name, plain(8), **options)
    assert str(caught.value).startswith(line)
