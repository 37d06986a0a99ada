"""Numbers as people read them. What was not measured is shown as a dash."""

from __future__ import annotations

from frostline.core.sizes import duration_text, size_text

MISSING = "–"


def count_text(count: float | None) -> str:
    """A whole number with separators: 1,234,567."""
    return MISSING if count is None else f"{count:,.0f}"


def short_count_text(count: float | None) -> str:
    """A count in three figures: 512, 12.3k, 1.23M."""
    if count is None:
        return MISSING
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}B" if count < 999.5 else f"{count:,.0f}B"


def bytes_text(count: float | None) -> str:
    """Bytes in three figures and a binary unit: 512 B, 12.3 MiB, 1.5 GiB."""
    return MISSING if count is None else size_text(count)


def seconds_text(seconds: float | None) -> str:
    """A time as text: 0.123 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    return MISSING if seconds is None else duration_text(seconds)


def ratio_text(ratio: float | None) -> str:
    """A ratio to the baseline with two decimals: 0.54."""
    return MISSING if ratio is None else f"{ratio:.2f}"


def share_text(share: float | None) -> str:
    """A share of one as a percentage, with more figures the smaller it is: 50.1%, 0.23%."""
    if share is None:
        return MISSING
    percent = 100 * share
    return f"{percent:.1f}%" if percent >= 1 or percent == 0 else f"{percent:.2g}%"


def mean_text(mean: float | None, std: float | None = None) -> str:
    """A mean, with its standard deviation if there is one: 0.713 ± 0.012, 34.21."""
    if mean is None:
        return MISSING
    decimals = 3 if abs(mean) < 10 else 2
    spread = "" if std is None else f" ± {std:.{decimals}f}"
    return f"{mean:.{decimals}f}{spread}"
