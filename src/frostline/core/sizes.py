"""Sizes and times as a user writes and reads them: 20GB, 30d, 1.5 GiB."""

from __future__ import annotations

import re

from frostline.core.errors import ConfigError

_BYTES = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

LARGEST = 1e18
"""No number of bytes or seconds that means something is larger."""


def parse_size(text: str, what: str) -> int:
    """The bytes of a size such as 20GB (powers of 1000), 512MiB (powers of 1024) or 1000 (bytes).

    Raises `UserError` naming `what` for anything else.
    """
    return round(_parse(text, what, _BYTES, "a size is a number and a unit, such as 20GB or 512MiB"))


def parse_duration(text: str, what: str) -> float:
    """The seconds of a duration such as 90s, 15m (or 15min), 12h, 30d or 2w.

    Raises `UserError` naming `what` for anything else.
    """
    return _parse(text, what, _SECONDS, "a duration is a number and s, m, h, d or w, such as 12h or 30d")


def size_text(count: float) -> str:
    """Bytes in three figures and a binary unit: 512 B, 12.3 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:,.0f} GiB"


def duration_text(seconds: float) -> str:
    """Seconds with three figures below a minute, then minutes and hours: 0.123 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _parse(text: str, what: str, units: dict[str, int], right: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"{what} '{text}': {right}")
    value = float(match[1]) * units[match[2]]
    if value > LARGEST:
        raise ConfigError(f"{what} '{text}': it is too large: use at most {LARGEST:.0e}")
    return value
