from __future__ import annotations

import pytest

from frostline.report import bytes_text, count_text, mean_text, ratio_text, seconds_text, share_text, short_count_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(1000), "0.977 KiB"),
        (bytes_text(1536), "1.5 KiB"),
        (bytes_text(5 * 2**20), "5 MiB"),
        (bytes_text(80 * 2**30), "80 GiB"),
        (bytes_text(None), "–"),
        (seconds_text(0.01234), "0.0123 s"),
        (seconds_text(59.9), "59.9 s"),
        (seconds_text(245.4), "4 min 05 s"),
        (seconds_text(7380), "2 h 03 min"),
        (share_text(0.5), "50.0%"),
        (share_text(0.00023), "0.023%"),
        (share_text(0.0), "0.0%"),
        (mean_text(0.7134, 0.0121), "0.713 ± 0.012"),
        (mean_text(34.216), "34.22"),
        (mean_text(None), "–"),
        (count_text(1234567), "1,234,567"),
        (short_count_text(999), "999"),
        (short_count_text(999_600), "1M"),
        (short_count_text(1_234_567), "1.23M"),
        (short_count_text(7e9), "7B"),
        (ratio_text(0.536), "0.54"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected
