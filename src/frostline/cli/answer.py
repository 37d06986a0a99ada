"""What a command answers, for people and for programs, and the only place that writes to standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
"""The option that every command with a result takes."""


@dataclass(frozen=True)
class Answer:
    """A command's result: as plain data, and as what is shown in the terminal instead.

    `view` is called only when it is shown. `status` is the exit status.
    """

    document: Any
    view: Callable[[], Sequence[RenderableType]]
    as_json: bool
    status: int = 0

    def show(self) -> None:
        """Write it to standard output."""
        if self.as_json:
            print(json.dumps(_finite(self.document), indent=2, ensure_ascii=False), flush=True)
            return
        from rich.console import Console

        console = Console(highlight=False)
        for part in self.view():
            # What is written as plain text goes out as it is, for pipes and files: never broken into lines.
            if isinstance(part, str):
                print(part)
            else:
                console.print(part)
        sys.stdout.flush()


def progress_console() -> Console:
    """Where progress is shown: standard error."""
    from rich.console import Console

    return Console(stderr=True)


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for: infinite perplexities, and what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
