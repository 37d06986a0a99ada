"""Which blocks each preset freezes, for every number of blocks, against the formula and by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from anatomies import plain

from frostline.core.errors import UserError
from frostline.plan import Full, Plan
from frostline.strategies import Situation, make_selection
from grids import slow_but

DEPTHS = range(2, 41)


def plan(name: str, blocks: int, seed: int = 0) -> Plan:
    return make_selection(name, Situation(plain(blocks), seed)).schedule.first


def frozen(name: str, blocks: int, seed: int = 0) -> set[int]:
    chosen = plan(name, blocks, seed)
    assert {block for block in chosen.blocks if block.mode != "frozen"} == {Full()}
    return {index for index, block in enumerate(chosen.blocks) if block.mode == "frozen"}


def rounded_half_up(percent: int, blocks: int) -> int:
    """floor(P L / 100 + 1/2) in whole numbers, within 1 and L - 1."""
    return min(max((2 * percent * blocks + 100) // 200, 1), blocks - 1)


@pytest.mark.parametrize("percent", slow_but([33, 90], [1, 10, 25, 33, 50, 66, 75, 90, 99]))
def test_bot_and_top_freeze_the_rounded_share_at_their_end(percent: int) -> None:
    for blocks in DEPTHS:
        count = rounded_half_up(percent, blocks)
        assert frozen(f"bot{percent}", blocks) == set(range(count))
        assert frozen(f"top{percent}", blocks) == set(range(blocks - count, blocks))
        assert plan(f"bot{percent}", blocks).boundary == count
        assert plan(f"top{percent}", blocks).boundary == 0


@pytest.mark.parametrize(("percent", "n"), [(25, 4), (33, 3), (50, 2)])
def test_int_freezes_every_nth_block(percent: int, n: int) -> None:
    for blocks in DEPTHS:
        expected = set(range(n - 1, blocks, n))
        if expected:
            assert frozen(f"int{percent}", blocks) == expected
            assert plan(f"int{percent}", blocks).boundary == 0, "block 0 always trains"
        else:
            with pytest.raises(
                UserError,
                match=f"^strategy 'int{percent}' freezes every n-th block with n = {n}, but the model has {blocks}: ",
            ):
                plan(f"int{percent}", blocks)


@pytest.mark.parametrize(
    ("name", "blocks", "by_hand"),
    [
        ("bot25", 12, {0, 1, 2}),
        ("bot50", 12, {0, 1, 2, 3, 4, 5}),
        ("bot75", 12, {0, 1, 2, 3, 4, 5, 6, 7, 8}),
        ("bot25", 6, {0, 1}),  # 1.5 rounds up
        ("bot25", 5, {0}),  # 1.25 rounds down
        ("bot50", 5, {0, 1, 2}),  # 2.5 rounds up
        ("bot10", 4, {0}),  # 0.4, but never none
        ("bot90", 4, {0, 1, 2}),  # 3.6, but never all
        ("bot50", 32, set(range(16))),
        ("top25", 12, {9, 10, 11}),
        ("top75", 4, {1, 2, 3}),
        ("int25", 12, {3, 7, 11}),
        ("int33", 12, {2, 5, 8, 11}),
        ("int33", 8, {2, 5}),
        ("int50", 12, {1, 3, 5, 7, 9, 11}),
        ("int50", 2, {1}),
    ],
)
def test_by_hand(name: str, blocks: int, by_hand: set[int]) -> None:
    assert frozen(name, blocks) == by_hand


@pytest.mark.parametrize("percent", [25, 50, 75])
def test_random_draws_as_many_blocks_as_bot_freezes(percent: int) -> None:
    for blocks in DEPTHS:
        assert len(frozen(f"random{percent}", blocks)) == rounded_half_up(percent, blocks)


def test_random_follows_the_seed_alone() -> None:
    for seed in range(5):
        assert plan("random50", 12, seed) == plan("random50", 12, seed)
    draws = {frozenset(frozen("random50", 12, seed)) for seed in range(50)}
    assert len(draws) > 45, "924 sets of six blocks: fifty seeds hardly share one"


def test_random_favours_no_block() -> None:
    """Each of 8 blocks is frozen in half of the draws: 200 +- 10 of 400 (standard deviation)."""
    times = Counter(index for seed in range(400) for index in frozen("random50", 8, seed))
    assert all(160 < times[index] < 240 for index in range(8)), times


@pytest.mark.parametrize("name", ["bot50", "top25", "random75"])
def test_one_block_leaves_nothing_to_choose(name: str) -> None:
    with pytest.raises(
        UserError, match=r"^the model has one block, so some of its blocks cannot be frozen: use all, head or lora$"
    ):
        plan(name, 1)


def test_one_block_can_still_be_trained() -> None:
    for name in ("all", "head", "bitfit", "lora"):
        assert len(plan(name, 1).blocks) == 1
    with pytest.raises(UserError, match="'int50' freezes every n-th block with n = 2, but the model has 1"):
        plan("int50", 1)


@pytest.mark.parametrize("name", ["bot50", "top50", "int50", "random50"])
def test_what_lies_around_the_blocks(name: str) -> None:
    untied, tied = (make_selection(name, Situation(plain(4, tied=tied))).schedule.first for tied in (False, True))
    for chosen, head in ((untied, "full"), (tied, "frozen")):
        assert (chosen.embeddings.mode, chosen.final_norm.mode, chosen.head.mode) == ("frozen", "full", head)
    assert untied.blocks == tied.blocks
