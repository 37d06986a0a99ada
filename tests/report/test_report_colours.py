"""The report's colours: text can be read and marks can be seen, in light and dark."""

from __future__ import annotations

import itertools
import math
import re
from importlib.resources import files

import pytest

STYLE = files("frostline.report").joinpath("page", "page.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\n\s*\}", STYLE, re.S)[:2]
)
SERIES = [f"c{number}" for number in range(8)]
MODES = ["full", "partial", "lora", "prefix", "adapter"]


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(colours: dict[str, str]) -> None:
    pairs = [(text, back) for text in ("ink", "soft", "accent") for back in ("page", "card", "tint")]
    pairs += [("warn", "warn-tint"), ("bad", "bad-tint"), ("good", "good-tint"), *(("on", mode) for mode in MODES)]
    assert {
        pair: contrast(*(colours[name] for name in pair))
        for pair in pairs
        if contrast(*(colours[n] for n in pair)) < 4.5
    } == {}


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_marks_can_be_seen(colours: dict[str, str]) -> None:
    low = {name: contrast(colours[name], colours["card"]) for name in (*SERIES, *MODES)}
    assert {name: value for name, value in low.items() if value < 3} == {}
    assert len({colours[name] for name in SERIES}) == len(SERIES)
    assert all(contrast(colours[mode], colours["frozen"]) >= 3 for mode in MODES), (
        "what trains is told from what does not"
    )


def test_both_schemes_have_every_colour() -> None:
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE)) - {"shadow", "edge"}
    assert used <= LIGHT.keys() and LIGHT.keys() == DARK.keys()


VISION = {
    "all cones": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""What reaches an eye of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1."""


def lab(colour: str, vision: str) -> tuple[float, float, float]:
    """CIELAB of a colour as it is seen."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    seen = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in VISION[vision]]
    white = ((0.4124, 0.3576, 0.1805, 0.9505), (0.2126, 0.7152, 0.0722, 1.0), (0.0193, 0.1192, 0.9505, 1.089))
    x, y, z = (sum(a * b for a, b in zip(row, seen, strict=False)) / row[3] for row in white)
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_series_are_told_apart(colours: dict[str, str], vision: str) -> None:
    near = {
        pair: distance
        for pair in itertools.combinations(SERIES, 2)
        if (distance := math.dist(*(lab(colours[name], vision) for name in pair))) < 15
    }
    assert near == {}
