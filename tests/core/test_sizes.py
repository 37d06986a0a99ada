"""Sizes and times as a user writes and reads them."""

from __future__ import annotations

import pytest

from frostline.core.errors import UserError
from frostline.core.sizes import parse_duration, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("7B", 7),
        ("20GB", 20 * 10**9),
        ("20 gb", 20 * 10**9),
        ("1.5TB", 1_500_000_000_000),
        ("512MiB", 512 * 2**20),
        ("3KiB", 3072),
        ("0.5GiB", 2**29),
        ("2tib", 2 * 2**40),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, "limit") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("15m", 900), ("12h", 43200), ("1.5d", 129600), ("2W", 1209600)]
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text, "age") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 G B", "20XB", "1e3", "nan", "1.GB", "２０GB"])
def test_what_is_no_size_says_what_would_be(text: str) -> None:
    with pytest.raises(UserError, match=r"^--max-size '.*': a size is .* such as 20GB or 512MiB$"):
        parse_size(text, "--max-size")


@pytest.mark.parametrize("text", ["", "30", "d", "30days", "-1d", "20GB"])
def test_what_is_no_duration_says_what_would_be(text: str) -> None:
    with pytest.raises(UserError, match=r"^--older-than '.*': a duration is .* such as 12h or 30d$"):
        parse_duration(text, "--older-than")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (12.3 * 2**20, "12.3 MiB"), (2**30, "1 GiB"), (2**45, "32,768 GiB")],
)
def test_sizes_as_text(count: float, expected: str) -> None:
    assert size_text(count) == expected
