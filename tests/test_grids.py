"""What `grids` leaves to the default suite."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from grids import grid, slow_but


def parts(cases: list[Any]) -> tuple[list[Any], list[Any]]:
    """The values of the fast cases, and of the slow ones."""
    slow = [case.values for case in cases if hasattr(case, "marks")]
    assert all(mark.name == "slow" for case in cases if hasattr(case, "marks") for mark in case.marks)
    return [case for case in cases if not hasattr(case, "marks")], slow


@pytest.mark.parametrize("axes", [("abc", [1, 2]), ([1, 2], "abcde"), ("ab", [1, 2, 3], [True, False])])
def test_every_value_of_every_axis_is_in_a_fast_cell_and_no_cell_is_lost(axes: tuple[Any, ...]) -> None:
    fast, slow = parts(grid(*axes))
    assert all({cell[i] for cell in fast} == set(axis) for i, axis in enumerate(axes))
    assert len(fast) == max(map(len, axes))
    assert sorted(fast + slow) == sorted(product(*axes))


def test_a_tuple_on_an_axis_is_several_parameters() -> None:
    fast, slow = parts(grid([("a", 1), ("b", 2)], [True, False]))
    assert fast == [("a", 1, True), ("b", 2, False)] and slow == [("a", 1, False), ("b", 2, True)]


def test_only_the_cases_given_are_fast() -> None:
    assert parts(slow_but(["b"], "abc")) == (["b"], [("a",), ("c",)])
    assert parts(slow_but([(1, "a")], grid([1, 2], "ab"))) == ([(1, "a")], [(1, "b"), (2, "a"), (2, "b")])
    with pytest.raises(ValueError, match=r"not among the cases: \['d'\]"):
        slow_but(["b", "d"], "abc")
    with pytest.raises(ValueError, match="no case is fast"):
        slow_but([], "abc")
