"""`frostline export`: write a run's LoRA as an ordinary LoRA folder, which PEFT, vLLM and llama.cpp read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.checkpoints import Exported


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="A new folder for the LoRA.")],
    as_json: Json = False,
) -> Answer:
    """Write a run's LoRA as an ordinary LoRA folder, which PEFT, vLLM and llama.cpp read."""
    from frostline.checkpoints import export_lora

    exported = export_lora(run, out)
    document = {
        "run": str(run),
        "out": str(exported.folder),
        "r": exported.r,
        "alpha": exported.alpha,
        "modules": list(exported.modules),
    }
    return Answer(document, lambda: _view(exported), as_json)


def _view(exported: Exported) -> list[RenderableType]:
    from rich.text import Text

    lora = f"rank {exported.r}, alpha {exported.alpha:g}, {len(exported.modules)} matrices"
    return [Text(f"written to {exported.folder}"), f"{lora}; its README.md says how to load it"]
