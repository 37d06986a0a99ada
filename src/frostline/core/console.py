"""The terminal as all of frostline prints to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from frostline.core.shown import visible


class PlainConsole(Console):
    """Shows text as it is: control characters are written out, and brackets are no markup.

    Args:
        stderr: print to standard error, not to standard output.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and (plain := visible(renderable.plain)) != renderable.plain:
            renderable = Text(plain, renderable.style, end=renderable.end)
        return super().render(renderable, options)
