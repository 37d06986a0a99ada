"""The answer of a command, as text and as JSON. Nothing else writes to standard output."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.core.shown import json_text, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
"""The option that every command with a result has."""

Base = Annotated[str | None, typer.Option(help="Where the base model of the run is now, if it has moved.")]
"""The option of every command that loads a run's model."""

StrategyOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the strategy, such as rows=64.")
]
"""The options of a strategy, which mean the same in every command."""


@dataclass(frozen=True)
class Answer:
    """A command's result.

    Attributes:
        document: the result as plain data.
        view: makes what the terminal shows instead; it is called only then.
        as_json: print the document as JSON.
        status: the exit status.
        silent: another process shows it.
    """

    document: Any
    view: Callable[[], Sequence[RenderableType]]
    as_json: bool
    status: int = 0
    silent: bool = False

    def show(self) -> None:
        """Write it to standard output."""
        if self.silent:
            return
        if self.as_json:
            print(json_text(_finite(self.document)), flush=True)
            return
        from frostline.core.console import PlainConsole

        console = PlainConsole()
        for part in self.view():
            # Plain text is printed as it is, without line breaks, so that pipes and files get it unchanged.
            if isinstance(part, str):
                print(visible(part))
            else:
                console.print(part)
        sys.stdout.flush()


def progress_console() -> Console:
    """The console that shows progress: standard error."""
    from frostline.core.console import PlainConsole

    return PlainConsole(stderr=True)


def _finite(value: Any) -> Any:
    """`value` with null in place of infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
