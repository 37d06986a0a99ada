"""`frostline demo`: the main job on the embedded model and data, with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.answer import Answer, Json
from frostline.cli.study import run_and_tabulate


def command(
    out: Annotated[Path, typer.Option(help="The folder that holds the demo's runs.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is drawn at random.")] = 42,
    as_json: Json = False,
) -> Answer:
    """Train the embedded model on a small task with four strategies and compare them."""
    from frostline.run import demo
    from frostline.study import StudyConfig

    data = out / "swapped-words"
    demo.write(data)
    study = StudyConfig.read({**demo.STUDY, "models": [str(demo.MODEL_DIR)], "tasks": [str(data)], "seeds": [seed]})
    return run_and_tabulate(study, out, [], as_json)
