"""The trainable parameters that the hybrid methods' table gives, from a config alone (methods.md 4)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.cost import trainable_parameters
from frostline.plan import BlockMode, Bottleneck, Frozen, Lora, Plan, Prefix

RECIPES = Path(__file__).parents[2] / "recipes" / "models"
GATED = Lora(r=8, alpha=16, targets="down", gate=True)
PREFIX = Prefix(length=20, gate="prefix")


@cache
def of_recipe(model: str) -> Anatomy:
    return find_anatomy(skeleton(AutoConfig.from_pretrained(RECIPES / model), AutoModelForCausalLM))


def trained(model: str, low: tuple[int, BlockMode], high: tuple[int, BlockMode]) -> int:
    """With so many blocks of one mode at the bottom, so many of another at the top, and frozen ones between them."""
    anatomy = of_recipe(model)
    middle = len(anatomy.blocks) - low[0] - high[0]
    modes = (low[1],) * low[0] + (Frozen(),) * middle + (high[1],) * high[0]
    return trainable_parameters(Plan(blocks=modes, final_norm=Frozen(), head=Frozen()), anatomy)


@pytest.mark.parametrize(
    ("model", "d", "f", "blocks", "table"),
    [
        ("llama-2-7b", 4096, 11008, 32, (7_864_320, 4_194_304, 4_507_680, 2_253_840)),
        ("llama-2-13b", 5120, 13824, 40, (12_288_000, 6_553_600, 7_060_520, 3_530_260)),
    ],
)
def test_the_table(model: str, d: int, f: int, blocks: int, table: tuple[int, int, int, int]) -> None:
    gated, prefix = 8 * (f + d) + (f + 1), 2 * 20 * d + (d + 1)
    expected = (
        blocks * 2 * 30 * d,
        blocks * 2 * 8 * (d + d),
        blocks * 3 // 4 * gated + blocks // 4 * prefix,
        blocks * 3 // 8 * gated + blocks // 8 * prefix,
    )
    nothing = (0, Frozen())
    found = (
        trained(model, nothing, (blocks, Prefix(length=30, gate="none"))),
        trained(model, (blocks, Lora(r=8, targets=("q_proj", "v_proj"))), nothing),
        trained(model, (blocks * 3 // 4, GATED), (blocks // 4, PREFIX)),
        trained(model, (blocks * 3 // 8, GATED), (blocks // 8, PREFIX)),
    )
    assert found == expected == table


def test_the_parallel_adapter() -> None:
    found = trained("llama-2-7b", (0, Frozen()), (32, Bottleneck(kind="parallel", bottleneck=256)))
    assert found == 32 * 3 * 256 * (4096 + 4096) == 201_326_592


def test_keys_of_a_prefix_are_as_narrow_as_the_groups() -> None:
    """Of a model whose 64 query heads share 8 key heads of width 128."""
    anatomy = of_recipe("llama-2-70b")
    modes = (*[Frozen()] * (len(anatomy.blocks) - 1), PREFIX)
    plan = Plan(blocks=modes, final_norm=Frozen(), head=Frozen())
    assert trainable_parameters(plan, anatomy) == 2 * 20 * (8 * 128) + (8192 + 1)
