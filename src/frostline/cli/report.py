"""`frostline report`: the table of the runs in a folder, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json
from frostline.core.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.report import Table


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, or any folder that holds runs.")],
    baseline: Annotated[
        str | None,
        typer.Option(help="The strategy that the others are compared with; by default the study's own, or all."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A further metric to show; the option may be given several times.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Json = False,
) -> Answer:
    """Show the table of the runs in a folder, from their records alone."""
    from frostline.report import collect, document, study_baseline, tabulate

    runs = collect(folder)
    table = tabulate(runs, baseline or study_baseline(folder))
    if baseline and table.groups and not any(group.baseline for group in table.groups):
        labels = dict.fromkeys(row.strategy for group in table.groups for row in group.rows)
        raise unknown_name("baseline", baseline, labels)
    known = {name: None for run in runs if run.record.metrics is not None for name in run.record.metrics.after}
    for name in metric or ():
        if name not in known:
            raise unknown_name("metric", name, known)
    return Answer({"out": str(folder), **document(table)}, lambda: _view(table, metric or [], markdown), as_json)


def _view(table: Table, metrics: list[str], as_markdown: bool) -> list[RenderableType]:
    from frostline.report import markdown, view

    return [markdown(table, metrics)] if as_markdown else view(table, metrics)
