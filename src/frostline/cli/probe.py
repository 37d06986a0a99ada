"""`frostline probe`: signals of a model's blocks on a task, as a table, a figure or JSON."""

from __future__ import annotations

from math import floor, isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frostline.cli.answer import Answer, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.signals import Measurement, Probe

BAR = 16
SMALL = 1e-4
"""Values below it have an exponent."""
FROZEN, TRAINED = ("░", "bright_blue"), ("█", "red")
"""A bar's symbol and colour, below the semantic cut and above it; the same as where a plan is shown."""


def command(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    task: Annotated[str, typer.Option(help="A built-in name, a file, a folder or a hub data set.")],
    rows: Annotated[int, typer.Option(min=2, help="Training rows to measure on.")] = 256,
    signals: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: vds, shift, similarity, final_similarity, projected_residual, gradient_norm, "
            "relative_gradient_norm, fisher, snr, weight_change.",
            show_default="vds (with a language model's head), shift, similarity",
        ),
    ] = None,
    tokens: Annotated[
        Literal["first", "all"] | None,
        typer.Option(
            help="Measure at the first labelled token of a row, or at all of them.",
            show_default="first; all in plain text",
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a row; longer rows are truncated.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows, and of a head that the model lacks.")] = 42,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(
            help="The precision of the model; auto: the checkpoint's own, or float32 where this machine imitates it."
        ),
    ] = "auto",
    max_steps: Annotated[int, typer.Option(min=1, help="Steps of 32 rows that weight_change is measured after.")] = 5,
    learning_rate: Annotated[float, typer.Option(min=0, help="Learning rate of these steps.")] = 5e-5,
    streaming: Annotated[bool, typer.Option("--streaming", help="Hold one block in memory at a time.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the signals in this file: .png, .pdf or .svg.")] = None,
    as_json: Json = False,
) -> Answer:
    """Measure signals of a model's blocks on a task. Strategies choose by them what to train."""
    from frostline.core.errors import ConfigError
    from frostline.core.figures import check_format
    from frostline.run import probe_model
    from frostline.signals import SIGNALS, WarmUp, save_figure

    if figure is not None:
        check_format(figure)
    names = None if signals is None else [name.strip() for name in signals.split(",") if name.strip()]
    if names == []:
        raise ConfigError(f"--signals names no signal: leave it out, or use some of {', '.join(SIGNALS)}")
    probe = probe_model(
        model,
        task,
        rows=rows,
        signals=names,
        tokens=tokens,
        max_length=max_length,
        seed=seed,
        dtype=dtype,
        streaming=streaming,
        warm_up=WarmUp(max_steps, learning_rate),
    )
    if figure is not None:
        save_figure(probe, figure)
    document = {**probe.document(), "deviation": probe.deviation, "cut": probe.suggestion}
    return Answer(document, lambda: _view(probe, figure), as_json)


def _view(probe: Probe, figure: Path | None) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    lead, shown = _columns(probe)
    cut = probe.suggestion
    table = Table("block", box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", min_width=BAR, no_wrap=True)
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for index, length in enumerate(_lengths(probe.signals[lead])):
        symbol, colour = FROZEN if cut is not None and index < cut else TRAINED
        cells = [_text(probe.signals[name][index]) for name in shown]
        table.add_row(str(index), Text(symbol * length, style=colour), *cells)
    parts: list[RenderableType] = [
        Text(f"{probe.model} on {probe.task}: {probe.rows} rows, read at {probe.read}", style="bold"),
        table,
    ]
    if cut is not None:
        last = len(probe.signals[lead]) - 1
        parts.append(
            Text(
                f"semantic cut: the largest gain of {lead} is at block {_largest(probe)}: freeze {_span(0, cut - 1)}, "
                f"train {_span(cut, last)}"
            )
        )
    if figure is not None:
        parts.append(Text(f"figure written to {figure}"))
    return parts


def _columns(probe: Probe) -> tuple[str, list[str]]:
    """The signal that is drawn as bars, and the signals that have a column."""
    whole = [name for name in probe.signals if "." not in name]
    lead = probe.deviation or whole[0]
    return lead, [name for name in whole if name.startswith(lead) or not name.endswith("_gain")]


def _largest(probe: Probe) -> int:
    gains = probe.gains()
    return max((i for i, gain in enumerate(gains) if gain.value is not None), key=lambda i: (gains[i].value or 0.0, -i))


def _span(first: int, last: int) -> str:
    return f"block {last}" if first == last else f"blocks {first} to {last}"


def _lengths(measurements: tuple[Measurement, ...]) -> list[int]:
    """The length of each block's bar, the longest for the largest value."""
    values = [one.value if one.value is not None and isfinite(one.value) else 0.0 for one in measurements]
    most = max(map(abs, values)) or 1.0
    return [max(round(BAR * abs(value) / most), 1 if value else 0) for value in values]


def _text(measurement: Measurement) -> str:
    """A value with its standard error, both to the error's first figure; alone with four figures."""
    value, error = measurement.value, measurement.error
    if value is None:
        return "–"
    if not error or not isfinite(value):
        return f"{value:.4g}"
    decimals = max(0, -floor(log10(error)))
    if 0 < abs(value) < SMALL:
        return f"{value:.{max(0, floor(log10(abs(value))) + decimals)}e} ± {error:.0e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
