"""The arithmetic of trials: who tries, for how long, and who goes on."""

from __future__ import annotations

import math

import pytest

from frostline.strategies import best_plan, best_rate, extrapolated, has_turned, next_rate, rounds


def test_what_a_small_allowance_pays_for() -> None:
    """0.4 of 300 steps allows 30 full steps; four and a half went into measuring, and a trial starts in two."""
    played = rounds(30 - 4.5, 2, 3)
    assert (played.rates, played.first, played.others) == (3, 5.0, 0)
    assert played.lost(2) == 5 + 2 * 2, "as a rule one rate is tried in vain"


def test_too_little_tries_nothing_and_much_tries_other_plans() -> None:
    assert rounds(6, 1, 3).rates == 1
    assert rounds(-3, 1, 3).others == 0
    much = rounds(85, 2, 3)
    assert (much.rates, much.others) == (3, math.floor((85 - 10 - 6) / 32))
    assert rounds(10_000, 1, 3).others == 6
    given = rounds(70, 1, 1)
    assert (given.rates, given.others) == (1, 2), "a learning rate that is given is not tried"


@pytest.mark.parametrize("allowance", [4.0, 9.0, 12.0, 25.0, 70.0, 500.0])
@pytest.mark.parametrize("start", [0.5, 3.0])
def test_no_more_is_lost_than_allowed(allowance: float, start: float) -> None:
    played = rounds(allowance, start, 3)
    others = played.others * (30 + start)
    everything = (played.rates - 1) * played.first + played.rates * start + others
    assert played.rates == 1 or everything <= allowance + 1e-9
    assert played.rates > 1 or others <= allowance


def test_a_higher_rate_has_to_be_clearly_better() -> None:
    assert best_rate({0: 3.89, 1: 3.80}) == 0, "2.3% better: such a lead is lost later"
    assert best_rate({0: 3.89, 1: 3.70}) == 1
    assert best_rate({0: 3.89, -1: 3.80}) == -1


def test_which_rate_is_tried_next() -> None:
    assert next_rate({0: 1.0}) == 1
    assert next_rate({0: 1.0, 1: 0.9}) == 2, "still falling"
    assert next_rate({0: 1.0, 1: 1.01}) is None, "about as good: the rule's is right"
    assert next_rate({0: 1.0, 1: 1.2}) == -1, "clearly worse: the rule's may be too high itself"
    assert next_rate({0: 1.0, 1: 1.2, -1: 0.9}) == -2
    assert next_rate({0: 1.0, 1: 1.2, -1: 1.0}) is None
    assert next_rate({0: math.inf}) == -1 and next_rate({0: math.inf, -1: math.inf}) == -2, "it diverged"
    assert next_rate({0: 1.0, 1: math.inf}) == -1
    assert next_rate({0: math.inf, -1: 1.0}) == -2
    assert best_rate({0: math.inf, -1: 5.0}) == -1


def test_a_power_law_is_continued() -> None:
    law = [(time, 5 * time**-0.2) for time in (10, 20)]
    assert extrapolated(law, 160) == pytest.approx(5 * 160**-0.2)
    assert extrapolated([(10, 1.0), (20, 1.1)], 160) == 1.1, "a rising loss is not continued"
    assert extrapolated([(10, 1.0)], 160) == 1.0
    assert extrapolated(law, 5) == law[-1][1], "nor is time turned back"


def test_a_loss_that_turned_is_out_whatever_it_is() -> None:
    assert has_turned([1.2, 1.0, 1.03, 1.05])
    assert not has_turned([1.2, 1.0, 1.03, 1.0]), "once may be chance"
    assert not has_turned([1.0, 1.01])
    assert best_plan([1.0, 0.5], [False, True]) == 0
    assert best_plan([1.0, 0.5], [True, True]) == 1
    assert best_plan([1.0, 0.99, 0.96], [False] * 3) == 2
    assert best_plan([1.0, 0.98], [False] * 2) == 0, "within the margin the rule's choice stays"
