"""Draws, orders, formulas and errors of the strategies whose plan moves."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from anatomies import plain

from frostline.core.errors import ConfigError
from frostline.plan import Plan, Schedule, lowest_boundary, phases, rate_of
from frostline.strategies import Situation, make_selection
from frostline.strategies._predictor import HISTORY, Predictor, features, trained_predictor

MOVING = ["lisa", "badam", "freezeout", "autofreeze", "gradual", "egeria", "smartfrz"]


def schedule(name: str, blocks: int = 6, steps: int | None = 60, seed: int = 0, **options: Any) -> Schedule:
    return make_selection(name, Situation(plain(blocks), seed, steps=steps), options).schedule


def trained(plan: Plan) -> tuple[int, ...]:
    return tuple(index for index, mode in enumerate(plan.blocks) if mode.mode != "frozen")


def turns(made: Schedule, steps: int) -> list[tuple[int, tuple[int, ...]]]:
    return [(step, trained(plan)) for step, plan in phases(made, steps)]


def watched(made: Schedule, signals: Sequence[dict[str, list[float]]]) -> list[tuple[int, int]]:
    """(step, frozen blocks) of each change, with one value of every signal for each step from 1 on."""
    found = ((step, made.next(step, given)) for step, given in enumerate(signals, start=1))
    return [(step, plan.boundary) for step, plan in found if plan is not None]


# LISA


def test_lisa_draws_exactly_gamma_blocks_every_k_steps() -> None:
    drawn = turns(schedule("lisa", gamma=2, every=5), 60)
    assert [step for step, _ in drawn] == list(range(0, 60, 5))
    assert {len(blocks) for _, blocks in drawn} == {2}
    counts = Counter(block for _, blocks in turns(schedule("lisa", gamma=2, every=1), 3000) for block in blocks)
    assert all(abs(counts[block] - 1000) < 100 for block in range(6))


def test_lisa_as_in_the_paper_draws_each_block_by_itself() -> None:
    drawn = [blocks for _, blocks in turns(schedule("lisa", gamma=2, every=1, draw="each"), 3000)]
    counts = Counter(block for blocks in drawn for block in blocks)
    assert all(abs(counts[block] - 1000) < 100 for block in range(6))
    several = Counter(map(len, drawn))
    for count in range(5):  # a binomial distribution
        expected = 3000 * math.comb(6, count) * (1 / 3) ** count * (2 / 3) ** (6 - count)
        assert abs(several[count] - expected) < 5 * math.sqrt(expected)


def test_lisa_is_known_before_training_and_follows_the_seed() -> None:
    first, same, other = (turns(schedule("lisa", every=3, seed=seed), 60) for seed in (4, 4, 5))
    assert first == same != other
    made = schedule("lisa", every=3, seed=4)
    plans = {step: plan for step in range(1, 60) if (plan := made.next(step, {})) is not None}
    assert [(step, trained(plan)) for step, plan in plans.items()] == [
        now for before, now in itertools.pairwise(first) if now[1] != before[1]
    ]


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        ({}, ("full", "full", "full")),
        ({"embeddings": False}, ("frozen", "full", "full")),
        ({"head": False}, ("full", "full", "frozen")),
    ],
)
def test_lisa_has_embeddings_norm_and_head_in_training(options: dict[str, Any], modes: tuple[str, ...]) -> None:
    plan = schedule("lisa", **options).first
    assert (plan.embeddings.mode, plan.final_norm.mode, plan.head.mode) == modes


# BAdam


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("descending", [5, 4, 3, 2, 1, 0, 5, 4]),
        ("ascending", [0, 1, 2, 3, 4, 5, 0, 1]),
        ([2, 0, 4], [2, 0, 4, 2, 0, 4, 2, 0]),
    ],
)
def test_badam_trains_one_block_at_a_time_in_order(order: Any, expected: list[int]) -> None:
    assert turns(schedule("badam", order=order, every=10), 80) == [(10 * i, (b,)) for i, b in enumerate(expected)]


def test_badam_in_random_order_trains_each_block_once_a_round() -> None:
    found = [blocks[0] for _, blocks in turns(schedule("badam", order="random", every=1), 18)]
    rounds = [found[:6], found[6:12], found[12:]]
    assert all(sorted(each) == list(range(6)) for each in rounds) and len(set(map(tuple, rounds))) > 1
    assert found != [blocks[0] for _, blocks in turns(schedule("badam", order="random", every=1, seed=1), 18)]


def test_badam_leaves_embeddings_norm_and_a_pretrained_head_alone() -> None:
    plan = schedule("badam").first
    assert (plan.embeddings.mode, plan.final_norm.mode, plan.head.mode) == ("frozen",) * 3
    assert schedule("badam", final_norm=True, head=True).first.final_norm.mode == "full"


# FreezeOut


@pytest.mark.parametrize("cubed", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_freezeout_ends_each_block_at_its_time_with_its_rate(cubed: bool, scaled: bool) -> None:
    made = schedule("freezeout", start=0.5, cubed=cubed, scaled=scaled, steps=1000)
    rate = rate_of(made)
    assert rate is not None
    for block in range(6):
        end = (0.5 + 0.5 * block / 6) ** (3 if cubed else 1)
        assert rate(0, block) == pytest.approx(1 / end if scaled else 1)
        half = round(end * 500)
        assert rate(half, block) == pytest.approx(0.5 / end if scaled else 0.5, rel=0.03)
        assert rate(math.ceil(end * 1000), block) == 0
        if block < 5:
            at = next(step for step, blocks in turns(made, 1000) if block not in blocks)
            assert at == math.ceil(end * 1000)
    assert rate(500, None) == pytest.approx(0.5)  # final norm and head: to the end


# Gradual unfreezing


def test_gradual_begins_at_the_top_and_each_block_has_its_rate() -> None:
    made = schedule("gradual", groups=3, every=7)
    assert turns(made, 60) == [(0, (4, 5)), (7, (2, 3, 4, 5)), (14, (0, 1, 2, 3, 4, 5))]
    last = phases(made, 60)[-1][1]
    assert [mode.lr_scale for mode in last.blocks] == pytest.approx([2.6 ** (i - 5) for i in range(6)])
    assert [step for step, _ in turns(schedule("gradual", groups=3), 60)] == [0, 20, 40]
    assert lowest_boundary(schedule("gradual", groups=3, frozen=1), made.first) == 2


# AutoFreeze


def test_autofreeze_freezes_below_the_first_block_that_still_changes() -> None:
    made = schedule("autofreeze", blocks=4, steps=60, decisions=5)  # decides at 10, 20, ..., 50
    norms = [[8.0, 8.0, 8.0, 8.0], [8.0, 7.0, 4.0, 2.0], [0.0, 0.0, 4.0, 1.0]]
    found = [made.next(step, {"gradient_sum": given}) for step, given in zip((10, 20, 30), norms, strict=True)]
    assert [plan and plan.boundary for plan in found] == [None, 2, 3]  # changes 0 0.125 0.5 0.75; then 0 0.5
    assert made.settled and lowest_boundary(made, found[-1] or made.first) == 3


def test_autofreeze_freezes_less_with_a_lower_percentile() -> None:
    changes = []
    for percentile in (10, 50, 90):
        made = schedule("autofreeze", steps=60, decisions=5, percentile=percentile)
        made.next(10, {"gradient_sum": [8.0] * 6})
        plan = made.next(20, {"gradient_sum": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]})
        changes.append(0 if plan is None else plan.boundary)
    assert changes == [1, 3, 5]


# Egeria


def measured(values: Sequence[float], rates: Sequence[float] | None = None, window: int = 3) -> list[dict[str, Any]]:
    """`values` as the plasticity of whatever block is the lowest."""
    shares = list(rates or [1.0] * len(values))
    rest = [min(shares[i:]) for i in range(len(shares))]
    names = [f"plasticity/{size}" for size in range(1, window + 1)]
    return [
        {name: [value] * 6 for name in names} | {"learning_rate": [now] * 6, "lowest_learning_rate": [low] * 6}
        for value, now, low in zip(values, shares, rest, strict=True)
    ]


def test_egeria_freezes_when_the_slope_of_the_average_stays_small() -> None:
    made = schedule("egeria", steps=61, decisions=60, window=3)
    rising = [float(step) for step in range(10)]
    assert watched(made, measured([*rising, *[9.0] * 8])) == [(15, 1)]
    # The averages of three are 9 from step 12 on. The slopes of three of them: 1, up to step 10, then 5/6, 1/2, 1/6, 0,
    # 0: at most 0.2 for the third time at step 15.
    assert watched(schedule("egeria", steps=61, decisions=60), measured([float(s * s) for s in range(40)])) == []


def test_egeria_thaws_when_the_rate_has_dropped_by_10_and_halves_its_window() -> None:
    rates = [1.0] * 20 + [0.1] * 21
    for halve, again in ((True, 23), (False, 27)):
        made = schedule("egeria", steps=61, decisions=60, window=3, halve=halve)
        found = watched(made, measured([5.0] * 41, rates))
        assert found[:4] == [(6, 1), (12, 2), (18, 3), (21, 0)]
        assert found[4] == (again, 1)  # with a window of 1: two values make the first slope
        assert made.state_dict()["window"] == (1 if halve else 3)


def test_egeria_says_that_the_boundary_will_fall_as_long_as_it_may() -> None:
    falling, steady = [1 - step / 61 for step in range(1, 41)], [1.0] * 40
    for rates, thaw, lowest in ((falling, True, 2), (steady, True, 2), ([*steady[:20], *[0.05] * 20], True, 0)):
        made = schedule("egeria", steps=61, decisions=60, thaw=thaw)
        watched(made, measured([5.0] * 40, rates)[:13])
        assert made.lowest == lowest  # type: ignore[attr-defined]
    never = schedule("egeria", steps=61, decisions=60, thaw=False)
    assert never.observes == {"plasticity/3"}
    assert watched(never, measured([5.0] * 40, [*steady[:20], *[0.05] * 20]))[-1] == (30, 5)
    assert never.settled and not never.observes


# SmartFRZ


def test_smartfrz_reads_numbers_that_depend_on_no_size() -> None:
    motion = [[0.1, 0.02], [0.01, 0.02], [0.001, 0.04]]
    moments, block, mask = features(motion, [1.0, 0.5, 0.25], 0, 0.3)
    assert moments.shape == (1, HISTORY, 5) and mask.tolist() == [[True] * 3 + [False] * 5]
    assert block.tolist() == [[0.0, pytest.approx(0.3)]]
    last = [math.log10(0.001) + 2, -2.0, math.log10(0.001 / 0.0205), 0.25, 0.0]
    assert moments[0, 2].tolist() == pytest.approx(last, abs=1e-5)
    longer, _, full = features([[0.5, 0.5]] * 5 + motion, [1.0] * 5 + [1.0, 0.5, 0.25], 0, 0.3)
    assert full.all() and longer[0, -1, 0] == moments[0, 2, 0]


def test_what_lies_outside_a_history_is_not_read() -> None:
    moments, block, mask = features([[0.1, 0.02]] * 3, [1.0] * 3, 0, 0.3)
    torch.manual_seed(0)
    made = Predictor()
    assert torch.equal(made(moments, block, mask), made(moments + ~mask.unsqueeze(-1), block, mask))
    assert sum(parameter.numel() for parameter in made.parameters()) == 217


def test_the_predictor_that_comes_with_frostline_tells_still_from_moving() -> None:
    made = trained_predictor()
    still = [[0.01, 0.01], [0.004, 0.006], [0.0005, 0.004], [0.00005, 0.003], [0.00001, 0.002]]
    moving = [[0.02, 0.02]] * 5
    rates = [1.0, 0.8, 0.5, 0.2, 0.05]
    assert made(*features(still, rates, 0, 0.95)).sigmoid() > 0.9
    assert made(*features(moving, [1.0] * 5, 1, 0.25)).sigmoid() < 0.5


def test_smartfrz_freezes_a_bottom_of_blocks_over_the_threshold() -> None:
    still = {"weight_motion": [1e-6] * 6, "learning_rate": [0.01] * 6}
    moving = {"weight_motion": [0.03] * 6, "learning_rate": [1.0] * 6}
    made = schedule("smartfrz", steps=60)  # decides at 3, 6, ..., 57
    assert [made.next(step, moving) for step in (3, 6, 9)] == [None] * 3
    found = [made.next(step, still) for step in range(12, 60)]
    boundaries = [plan.boundary for plan in found if plan is not None]
    assert boundaries == sorted(boundaries) and boundaries[-1] == 5
    assert made.settled and not made.observes


# Errors


@pytest.mark.parametrize("name", ["freezeout", "autofreeze", "gradual", "egeria", "smartfrz"])
def test_without_a_number_of_steps_one_line_says_what_to_give(name: str) -> None:
    with pytest.raises(ConfigError) as told:
        schedule(name, steps=None)
    line = str(told.value)
    assert line.startswith(f"strategy '{name}'") and "give the number of its steps (in Python: steps=...)" in line
    assert len(line) <= 300 and "\n" not in line


@pytest.mark.parametrize("name", ["lisa", "badam"])
def test_draws_need_no_number_of_steps(name: str) -> None:
    made = schedule(name, steps=None, every=2)
    assert made.lowest == 0 and any(made.next(step, {}) for step in range(1, 9))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lisa", {"gamma": 7}, "gamma=7, but the model has 6 blocks: use fewer"),
        ("lisa", {"gamma": 0}, "gamma"),
        ("badam", {"order": [2, 6]}, "order: use block numbers from 0 to 5"),
        ("badam", {"order": "sideways"}, "order"),
        ("freezeout", {"start": 0}, "start"),
        ("autofreeze", {"percentile": 100}, "percentile"),
        ("gradual", {"groups": 7}, "groups=7, but the model has 6 blocks: use fewer"),
        ("gradual", {"frozen": 4}, "frozen=4 leaves none of 4 groups: use less"),
        ("egeria", {"window": 0}, "window"),
        ("egeria", {"tolerance": -1}, "tolerance"),
        ("smartfrz", {"threshold": 1}, "threshold"),
        ("smartfrz", {"treshold": 0.5}, "treshold"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        schedule(name, **options)
    assert f"'{name}'" in str(told.value) and said in str(told.value)


@pytest.mark.parametrize("name", MOVING)
def test_first_plan_is_the_first_phase(name: str) -> None:
    made = schedule(name)
    known = phases(made, 60)
    assert known[0] == (0, made.first)
    steps = [step for step, _ in known]
    assert steps == sorted(set(steps)) and steps[-1] < 60


def test_bot_can_train_everything_first() -> None:
    """`first`: the share of the training before the blocks freeze."""
    changing = schedule("bot50", steps=50, first=0.1)
    (start, everything), (change, plan) = phases(changing, 50)
    assert (start, change) == (0, 5) and not changing.settled
    assert everything.embeddings.mode == "full" and trained(everything) == tuple(range(6))
    assert plan == schedule("bot50", steps=None).first and plan.boundary == 3
    with pytest.raises(ConfigError, match="'bot50' changes its plan at shares of the training"):
        schedule("bot50", steps=None, first=0.1)
    with pytest.raises(ConfigError, match="first"):
        schedule("bot50", first=1.0)
