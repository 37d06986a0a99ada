"""Numbers as people read them. What was not measured is shown as a dash."""

from __future__ import annotations

from frostline.core.sizes import size_text

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
    """Seconds with three figures below a minute, then minutes and hours: 0.123 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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
