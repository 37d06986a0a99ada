"""Grids of cases, of which the default suite runs a spread and `make check` all: the rest is marked slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def slow_but(fast: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The `cases` as parameters; those that are not `fast` are slow. A grid's slow cells may be among them.

    Raises `ValueError` where no case is fast, and for a fast one that is not a case.
    """
    cases, fast = list(cases), list(fast)
    unknown = [case for case in fast if case not in cases]
    if unknown or not fast:
        raise ValueError(f"not among the cases: {unknown}" if unknown else "no case is fast")
    return [case if case in fast or hasattr(case, "marks") else _slow(case) for case in cases]


def grid(*axes: Sequence[Any]) -> list[Any]:
    """All combinations; those off the diagonal, in which every value of every axis is, are slow.

    A tuple on an axis stands for several parameters.
    """
    diagonal = [_joined(axis[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))]
    return slow_but(diagonal, map(_joined, product(*axes)))


def _slow(case: Any) -> Any:
    return pytest.param(*_values(case), marks=pytest.mark.slow)


def _joined(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(part for value in values for part in _values(value))


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
