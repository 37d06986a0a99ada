"""`frostline merge`: write a run's model as an ordinary checkpoint that any transformers tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frostline.cli.answer import Answer, Base, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.checkpoints import Merged


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    base: Base = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Round every tensor to this type; by default none is rounded, so they may be float32."),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Write a run's model as an ordinary checkpoint that any transformers tool loads."""
    from frostline.checkpoints import merge

    merged = merge(run, out, base=base, dtype=dtype)
    lost = merged.lost / merged.changed if merged.changed else None
    document = {"run": str(run), "out": str(merged.folder), "dtype": merged.dtype, "lost_share": lost}
    return Answer(document, lambda: _view(merged), as_json)


def _view(merged: Merged) -> list[RenderableType]:
    from rich.text import Text

    shown: list[RenderableType] = [Text(f"written to {merged.folder}"), f"tensors in {merged.dtype}"]
    if merged.lost:
        share = f"{merged.lost / merged.changed:.1%} of the entries that training changed"
        shown.append(f"{share} are rounded to the base's value; --dtype float32 keeps them")
    return shown
