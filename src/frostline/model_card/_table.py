"""Tables and code spans of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.core.shown import one_line


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its numbers, from the second column on, are to the right."""
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """A user's word as code, in one line, in a table too."""
    return f"`{one_line(text, 100).replace('`', chr(39)).replace('|', '/')}`"
