"""`frostline merge`: write a run's model as an ordinary checkpoint that any transformers tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frostline.cli.answer import Answer, Base, Json

if TYPE_CHECKING:
    from rich.console import RenderableType


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    base: Base = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Round every tensor to this type; by default none is rounded."),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Write a run's model as an ordinary checkpoint that any transformers tool loads."""
    from frostline.checkpoints import merge

    folder = merge(run, out, base=base, dtype=dtype)
    return Answer({"run": str(run), "out": str(folder)}, lambda: _view(folder), as_json)


def _view(folder: Path) -> list[RenderableType]:
    from rich.text import Text

    return [Text(f"written to {folder}")]
