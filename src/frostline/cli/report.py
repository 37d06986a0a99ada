"""`frostline report`: the table of the runs in a folder, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json

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

    table = tabulate(collect(folder), baseline or study_baseline(folder))
    return Answer({"out": str(folder), **document(table)}, lambda: _view(table, metric or [], markdown), as_json)


def _view(table: Table, metrics: list[str], as_markdown: bool) -> list[RenderableType]:
    from frostline.report import markdown, view

    return [markdown(table, metrics)] if as_markdown else view(table, metrics)
