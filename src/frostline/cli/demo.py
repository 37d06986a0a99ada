"""`frostline demo`: the main job on the embedded model and data, with no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json
from frostline.cli.study import run_and_tabulate

if TYPE_CHECKING:
    from rich.console import RenderableType


def command(
    out: Annotated[Path, typer.Option(help="The folder that holds the demo's runs.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is drawn at random.")] = 42,
    as_json: Json = False,
) -> Answer:
    """Train the embedded model on a small task with four strategies, and write a report that compares them."""
    from frostline.report import write_report
    from frostline.run import demo
    from frostline.study import StudyConfig

    data = out / "swapped-words"
    demo.write(data)
    study = StudyConfig.read({**demo.STUDY, "models": [str(demo.MODEL_DIR)], "tasks": [str(data)], "seeds": [seed]})
    answer = run_and_tabulate(study, out, [], as_json)
    report = write_report(out)

    def view() -> list[RenderableType]:
        from rich.text import Text

        return [*answer.view(), Text("open this file in a browser, it has the figures:"), str(report)]

    return replace(answer, view=view)
