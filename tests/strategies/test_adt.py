"""ADT by hand: which blocks freeze after the first steps, and when."""

from __future__ import annotations

from typing import Any

import pytest
from anatomies import plain

from frostline.core.errors import UserError
from frostline.strategies import Situation, make_selection


def frozen_after(name: str, change: list[float], steps: int = 5, **options: Any) -> set[int]:
    """The blocks that freeze at step `steps`, from the observed change; before it, every block trains."""
    schedule = make_selection(name, Situation(plain(len(change))), options).schedule
    first = schedule.first
    assert all(block.mode != "frozen" for block in first.blocks)
    assert first.embeddings.mode == "frozen", "so that nothing but blocks changes with the plan"
    for step in range(1, steps):
        assert schedule.observes == {"weight_change"}
        assert not schedule.settled
        assert schedule.next(step, {"weight_change": [9.0 - block for block in range(len(change))]}) is None
    chosen = schedule.next(steps, {"weight_change": change})
    assert chosen is not None
    assert schedule.settled
    assert schedule.next(steps + 1, {}) is None
    assert schedule.first == first, "whatever has become of it since"
    return {index for index, block in enumerate(chosen.blocks) if block.mode == "frozen"}


def test_the_least_and_the_most_changed() -> None:
    change = [0.4, 0.1, 0.8, 0.3]
    assert frozen_after("adt-l25", change) == {1}
    assert frozen_after("adt-l50", change) == {1, 3}
    assert frozen_after("adt-l75", change) == {0, 1, 3}
    assert frozen_after("adt-h25", change) == {2}
    assert frozen_after("adt-h50", change) == {0, 2}
    assert frozen_after("adt-h75", change) == {0, 2, 3}


def test_equal_changes_freeze_the_lowest_blocks() -> None:
    for name in ("adt-l50", "adt-h50"):
        assert frozen_after(name, [0.5] * 6) == {0, 1, 2}
    assert frozen_after("adt-l50", [0.5, 0.1, 0.5, 0.5]) == {0, 1}


def test_the_number_of_steps_is_an_option() -> None:
    assert frozen_after("adt-l25", [0.4, 0.1, 0.8, 0.3], steps=2, warmup_steps=2) == {1}
    with pytest.raises(UserError, match=r"^strategy_options of 'adt-l25': warmup_steps: it should be greater than 0"):
        frozen_after("adt-l25", [0.4, 0.1], warmup_steps=0)
    with pytest.raises(
        UserError, match=r"^strategy_options: percent: the name 'adt-l25' already sets it: leave it out$"
    ):
        frozen_after("adt-l25", [0.4, 0.1], percent=50)


def test_lora_is_on_all_blocks_first_and_then_on_those_that_are_left() -> None:
    schedule = make_selection("adt-h50+lora", Situation(plain(4)), {"lora": {"r": 2}}).schedule
    before, after = schedule.first, schedule.next(5, {"weight_change": [0.4, 0.1, 0.8, 0.3]})
    assert after is not None
    assert [block.mode for block in before.blocks] == ["lora"] * 4
    assert [block.mode for block in after.blocks] == ["frozen", "lora", "frozen", "lora"]
    assert (after.strategy, after.final_norm.mode) == ("adt-h50+lora", "frozen")


def test_one_block_leaves_nothing_to_choose() -> None:
    with pytest.raises(UserError, match=r"^the model has one block, so some of its blocks cannot be frozen"):
        make_selection("adt-l50", Situation(plain(1)))
