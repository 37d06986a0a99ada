"""`frostline study`: a grid of runs, resumable, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json, progress_console

if TYPE_CHECKING:
    from frostline.study import StudyConfig


def command(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Models, tasks, strategies, seeds, config.")],
    out: Annotated[Path, typer.Option(help="The folder that holds the study's runs.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value]...", help="Settings that replace its own: config.max_steps=10 ..."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A further metric to show; the option may be given several times.")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Run a grid of models, tasks, strategies and seeds. Finished runs are skipped, interrupted ones are resumed."""
    from frostline.study import read_study

    return run_and_tabulate(read_study(study, settings or []), out, metric or [], as_json)


def run_and_tabulate(study: StudyConfig, out: Path, metrics: list[str], as_json: bool) -> Answer:
    """Run `study` in `out`; the answer is its table, with exit status 1 when a run failed."""
    from rich.text import Text

    from frostline.report import document, view
    from frostline.study import run_study, table_of

    try:
        results = run_study(study, out, progress_console())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: run the same command again to continue with the runs in {out}") from None
    table = table_of(study, results)
    return Answer(
        {"out": str(out), **document(table)},
        lambda: [*view(table, metrics), Text(f"records in {out}; `frostline report {out}` shows this table again")],
        as_json,
        status=1 if table.failures else 0,
    )
