"""Signals as a figure: one panel for each signal, one bar for each block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.core.figures import check_format, figure_text, new_figure, write_figure
from frostline.signals._probe import Probe

if TYPE_CHECKING:
    from frostline.signals._measurement import Measurement

_BAR, _CUT = "#4c78a8", "#e45756"


def save_figure(probe: Probe, path: Path) -> None:
    """Draw every signal of `probe` over the blocks, with standard errors and a line at the suggested cut.

    Raises `ConfigError` for a file name with an unknown ending.
    """
    check_format(path)
    shown = [name for name in probe.signals if "." not in name]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(4 * columns, 2.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, name in zip(panels, shown, strict=False):
        _draw(panel, name, probe.signals[name], probe.suggestion)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.suptitle(
        figure_text(f"{Path(probe.model).name} on {Path(probe.task).name}, {probe.rows} rows")
        + (f"; dashed: cut by {probe.deviation}" if probe.suggestion else "")
    )
    write_figure(figure, path)


def _draw(panel: Any, name: str, measurements: Sequence[Measurement], cut: int | None) -> None:
    known = [(i, one) for i, one in enumerate(measurements) if one.value is not None and math.isfinite(one.value)]
    values = [one.value for _, one in known]
    errors = [one.error or 0.0 for _, one in known]
    panel.bar([i for i, _ in known], values, yerr=errors if any(errors) else None, color=_BAR, capsize=2)
    if cut is not None:
        panel.axvline(cut - 0.5, color=_CUT, linestyle="--", linewidth=1)
    panel.set_title(name.replace("_", " "), fontsize=10)
    panel.set_xlabel("block")
    panel.set_xlim(-0.6, len(measurements) - 0.4)
    panel.xaxis.get_major_locator().set_params(integer=True)
