"""Seeds for named uses: they do not change, differ from each other, and look random."""

from __future__ import annotations

from itertools import product

from frostline.core.seeding import derive_seed


def test_seeds_stay_what_they_were() -> None:
    """A change here changes every recorded run's batches, heads and draws."""
    assert derive_seed(42, "rows", 3) == 1391666396228420838
    assert derive_seed(42, "rows", 3) == derive_seed(42, "rows", "3")


def test_two_uses_never_share_a_seed() -> None:
    """Every list of up to three names that are made of a letter and of what the names are joined with."""
    names = ["".join(letters) for length in range(3) for letters in product("a/\\", repeat=length)]
    uses = [use for length in range(4) for use in product(names, repeat=length)]
    assert len({derive_seed(seed, *use) for seed in (1, 2) for use in uses}) == 2 * len(uses)


def test_every_bit_of_neighbouring_seeds_is_a_coin() -> None:
    seeds = [derive_seed(seed, "use") for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 400 < sum(seed >> bit & 1 for seed in seeds) < 600
