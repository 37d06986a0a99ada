"""The three tiers, what trains in the middle one, and what changes in the forward pass."""

from __future__ import annotations

from typing import Any

import pytest
from anatomies import plain

from frostline.core.errors import UserError
from frostline.plan import Forward, Frozen, Full, Partial, Plan, Residual
from frostline.strategies import Situation, make_selection


def plan(blocks: int = 6, seed: int = 0, name: str = "hierarchical", **options: Any) -> Plan:
    chosen = make_selection(name, Situation(plain(blocks), seed), options).schedule.first
    assert chosen.strategy == name
    return chosen


def tiers(blocks: int, **options: Any) -> tuple[int, int, int]:
    modes = plan(blocks, **options).blocks
    low, middle, high = (sum(mode.mode == word for mode in modes) for word in ("frozen", "partial", "full"))
    assert [mode.mode for mode in modes] == ["frozen"] * low + ["partial"] * middle + ["full"] * high
    return low, middle, high


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(3, (1, 1, 1)), (4, (1, 1, 2)), (5, (2, 2, 1)), (6, (2, 2, 2)), (12, (4, 4, 4)), (16, (5, 5, 6))],
)
def test_thirds(blocks: int, expected: tuple[int, int, int]) -> None:
    assert tiers(blocks) == expected


def test_shares_and_numbers() -> None:
    assert tiers(12, low=0.5, middle=0.25) == (6, 3, 3)
    assert tiers(12, low=7, middle=1) == (7, 1, 4)
    assert tiers(12, low=0.5, middle=2) == (6, 2, 4)
    assert tiers(12, low=6, middle=0) == (6, 0, 6)
    assert tiers(10, low=0.25, middle=0) == (3, 0, 7), "2.5 rounds up"
    assert tiers(4, low=0, middle=2) == (0, 2, 2)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, Partial(train="attention")),
        ({"partly": "feed_forward"}, Partial(train="feed_forward")),
        ({"partly": "norms_and_biases"}, Partial(train="norms_and_biases")),
        ({"partly": "rows"}, Partial(rows=0.5, rows_seed=9)),
        ({"partly": "rows", "row_share": 0.25, "rows_seed": 3}, Partial(rows=0.25, rows_seed=3)),
        ({"partly": "lr"}, Full(lr_scale=0.1)),
        ({"partly": "lr", "lr_scale": 0.3}, Full(lr_scale=0.3)),
    ],
)
def test_what_trains_in_the_middle(options: dict[str, Any], mode: Partial | Full) -> None:
    assert plan(6, seed=9, **options).blocks == (Frozen(), Frozen(), mode, mode, Full(), Full())


def test_the_forward_pass_is_the_models_own_unless_asked() -> None:
    assert plan().forward == Forward()
    assert not plan().forward.changes
    weights = (0.0, 0.0, 0.1, 0.2, 0.3, 0.4)
    changed = plan(loss_weights=weights, alpha=0.2, span=2).forward
    assert changed == Forward(loss_weights=weights, residual=Residual(alpha=0.2, span=2))
    assert plan(name="hierarchical+lora", alpha=0.2, span=2).forward == Forward(residual=Residual(alpha=0.2, span=2))


def test_refusals() -> None:
    assert refusal(blocks=2) == (
        "strategy 'hierarchical': low (1) and middle (1) leave none of 2 blocks for the high tier: use smaller tiers"
    )
    assert refusal(low=4, middle=2).endswith(
        "low (4) and middle (2) leave none of 6 blocks for the high tier: use smaller tiers"
    )
    assert refusal(low=0.9, middle=0.9).endswith(
        "low (5) and middle (5) leave none of 6 blocks for the high tier: use smaller tiers"
    )
    assert refusal(loss_weights=[0.5, 0.5]) == (
        "strategy 'hierarchical': forward.loss_weights: 2 numbers for 6 blocks: use one for each block"
    )
    assert refusal(alpha=0.1, span=7) == "strategy 'hierarchical': forward.residual.span: 7 of 6 blocks: use at most 6"
    assert refusal(row_share=0.2) == (
        "strategy_options of 'hierarchical': row_share has no effect with partly: attention: use partly: rows, "
        "or leave it out"
    )
    assert refusal(partly="rows", lr_scale=0.2).endswith(
        "lr_scale has no effect with partly: rows: use partly: lr, or leave it out"
    )
    for wrong in ({"low": 1.5}, {"low": -1}, {"partly": "heads"}, {"partly": "lr", "lr_scale": 0}, {"span": 0}):
        assert refusal(**wrong).startswith(f"strategy_options of 'hierarchical': {list(wrong)[-1]}")
