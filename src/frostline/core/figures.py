"""Figures as files: which formats there are, and how one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.core.errors import ConfigError
from frostline.core.files import atomic_file
from frostline.core.shown import one_line

FORMATS = ("png", "pdf", "svg")


def check_format(path: Path) -> str:
    """The format of a figure, by the ending of its file name. Raises `ConfigError` for an unknown one."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ConfigError(f"{path}: unknown figure format: use a file name that ends in {', '.join(FORMATS)}")
    return suffix


def figure_text(text: str) -> str:
    """A name as a figure shows it: matplotlib would read what is between two dollar signs as a formula."""
    return one_line(text).replace("$", r"\$")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all. Raises `ConfigError` for a file name with an unknown ending."""
    kind = check_format(path)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)
