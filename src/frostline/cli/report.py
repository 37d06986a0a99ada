"""`frostline report`: what the runs in a folder came to, from their records alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer
from frostline.core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.report import Table


class Format(StrEnum):
    """The forms of a report."""

    table = "table"
    markdown = "markdown"
    json = "json"
    csv = "csv"
    html = "html"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a study, of a run, or of several.")],
    form: Annotated[
        Format,
        typer.Option("--format", help="html writes DIR/report.html, with figures, and prints its path; others print."),
    ] = Format.table,
    baseline: Annotated[
        str | None,
        typer.Option(help="The strategy that the others are compared with; by default the study's own, or all."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="A further metric for the table; the option may be given several times. Other forms have all."
        ),
    ] = None,
) -> Answer:
    """Show what the runs in a folder came to, from their records alone."""
    from frostline.report import collect, document, study_baseline, tabulate

    if metric and form not in (Format.table, Format.markdown):
        raise ConfigError(f"--metric: {form} has every metric already: leave it out, or use --format table")
    found = collect(folder)
    table = tabulate(found.runs, baseline or study_baseline(folder), found.unreadable)
    if baseline and table.groups and not any(group.baseline for group in table.groups):
        labels = dict.fromkeys(row.strategy for group in table.groups for row in group.rows)
        raise unknown_name("baseline", baseline, labels)
    known = {name: None for run in found.runs if run.record.metrics is not None for name in run.record.metrics.after}
    for name in metric or ():
        if name not in known:
            raise unknown_name("metric", name, known)
    shown = {"out": str(folder), **document(table)}
    return Answer(shown, lambda: _view(form, folder, table, metric or [], baseline), form == Format.json)


def _view(form: Format, folder: Path, table: Table, metrics: list[str], baseline: str | None) -> list[RenderableType]:
    from frostline.report import csv_text, markdown, view, write_report

    if form == Format.html:
        return [str(write_report(folder, baseline))]
    if form == Format.csv:
        return [csv_text(table)]
    return [markdown(table, metrics)] if form == Format.markdown else view(table, metrics)
