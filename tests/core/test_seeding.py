"""Seeds for named uses: stable, far apart, and as good as random."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from frostline.core.seeding import derive_seed

NAMES = st.lists(st.text("ab/\\", max_size=4), max_size=3).map(tuple)


def test_seeds_stay_what_they_were() -> None:
    """A change here changes every recorded run's batches, heads and draws."""
    assert derive_seed(42, "rows", 3) == 1391666396228420838
    assert derive_seed(42, "rows", 3) == derive_seed(42, "rows", "3")


@settings(deadline=None, max_examples=300)
@given(st.tuples(st.integers(0, 3), NAMES), st.tuples(st.integers(0, 3), NAMES))
def test_two_uses_share_a_seed_only_if_they_are_one(one: tuple[int, tuple], other: tuple[int, tuple]) -> None:
    same = derive_seed(one[0], *one[1]) == derive_seed(other[0], *other[1])
    assert same == (one == other)


def test_a_name_with_a_slash_is_not_two_names() -> None:
    assert derive_seed(1, "a/b") != derive_seed(1, "a", "b")
    assert derive_seed(1, "a\\", "b") != derive_seed(1, "a\\/b")


def test_every_bit_of_neighbouring_seeds_is_a_coin() -> None:
    seeds = [derive_seed(seed, "use") for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 400 < sum(seed >> bit & 1 for seed in seeds) < 600
