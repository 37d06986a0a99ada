"""The formulas of semantic deviation against slow ones, written out."""

from __future__ import annotations

import math

import pytest
import torch

from frostline.signals import (
    SemanticBasis,
    cut_at_largest,
    difference_gain,
    log_gain,
    semantic_deviation,
    shift,
    similarity,
)


@pytest.mark.parametrize("rank", [8, 5])
def test_the_basis_is_the_pseudo_inverse(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(20_000, rank, generator=draw) @ torch.randn(rank, 8, generator=draw)
    labels = torch.tensor([3, 19_999, 3])
    one_hot = torch.nn.functional.one_hot(labels, 20_000).double()
    expected = one_hot @ torch.linalg.pinv(weight.double(), rtol=1e-5).T
    torch.testing.assert_close(SemanticBasis(weight)(labels), expected.float(), rtol=1e-3, atol=1e-9)


def test_each_tokens_distance_and_angle() -> None:
    before, after, basis = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))

    def cos(a: torch.Tensor, b: torch.Tensor) -> float:
        dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))

    for level in range(2):
        for token in range(5):
            h, g = before[level, token], after[level, token]
            apart = math.sqrt(sum((float(y) - float(x)) ** 2 for x, y in zip(h, g, strict=True)))
            assert float(shift(before, after)[level, token]) == pytest.approx(apart, rel=1e-5)
            assert float(similarity(before, after)[level, token]) == pytest.approx(cos(h, g), abs=1e-6)
            deviation = float(semantic_deviation(before, basis[0])[level, token])
            assert deviation == pytest.approx(1 - cos(h, basis[0, token]), abs=1e-6)


def test_gains_and_their_errors() -> None:
    draw = torch.Generator().manual_seed(2)
    before = torch.rand(400, generator=draw) + 1
    after = 0.6 * before + 0.1 * torch.rand(400, generator=draw)
    difference, log = difference_gain(before, after), log_gain(before, after)
    assert difference.value == pytest.approx(float(before.mean() - after.mean()), rel=1e-5)
    assert log.value == pytest.approx(-math.log(float(after.mean() / before.mean())), rel=1e-5)
    # The spread of what is left when one row is taken out (jackknife), for any statistic.
    kept = [torch.arange(400) != row for row in range(400)]
    for error, statistic in (
        (difference.error, lambda b, a: b.mean() - a.mean()),
        (log.error, lambda b, a: -torch.log(a.mean() / b.mean())),
    ):
        left = torch.stack([statistic(before[rows], after[rows]) for rows in kept]).double()
        jackknife = math.sqrt(399 / 400 * float(((left - left.mean()) ** 2).sum()))
        assert error == pytest.approx(jackknife, rel=0.02)


def test_no_logarithm_and_no_error_where_there_is_none() -> None:
    assert log_gain(torch.zeros(3), torch.ones(3)).value is None
    assert difference_gain(torch.ones(1), torch.zeros(1)).error is None


@pytest.mark.parametrize(
    ("gains", "cut"),
    [
        ([0.1, 0.5, 0.2, 0.1], 2),  # the worked figure: the first two of four are frozen
        ([None, -0.3, -0.1, -0.2], 3),
        ([0.1, 0.2, 0.3], 2),  # never all of them
        ([0.4, 0.4, 0.1], 1),
    ],
)
def test_the_cut_is_at_the_largest_gain(gains: list[float | None], cut: int) -> None:
    assert cut_at_largest(gains) == cut


def test_no_gain_no_cut() -> None:
    with pytest.raises(ValueError, match="no block has a gain"):
        cut_at_largest([None, None])
