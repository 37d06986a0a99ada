"""Text as it may leave frostline: no control character reaches a terminal, and no name can change what is around it.

Names, paths, metrics and texts of rows come from files that others wrote. ESC sequences could repaint a terminal, and
marks of direction could show a line in another order.
"""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST_LINE = 300
"""Characters of an error, its prefix included."""
_GAP = " ... "
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 but for tab and line feed, C1, separators of lines, marks of direction, and half surrogates."""
_MARKDOWN = re.compile(r"[\\|<>\[\]`*]")


def visible(text: str) -> str:
    r"""The text with every control character written out.

    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    """
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_written, text)


def one_line(text: str, most: int = LONGEST_LINE) -> str:
    """The text as one line of at most `most` characters; what is too long loses its middle, its longest value first."""
    line = visible(" ".join(text.splitlines()))
    while len(line) > most:
        values = re.findall(r"'[^']{60,}'|[^\s']{60,}", line)
        value = max(values, key=len, default=line)
        line = line.replace(value, shortened(value, max(40, len(value) - (len(line) - most)) if values else most), 1)
    return line


def shortened(text: str, most: int) -> str:
    """The text, without its middle where it is longer than `most`."""
    if len(text) <= most:
        return text
    head = (most - len(_GAP) + 1) // 2
    return f"{text[:head]}{_GAP}{text[len(text) - (most - len(_GAP) - head) :]}"


def markdown_text(text: str) -> str:
    r"""The text as Markdown that shows just this text, in one line, in a table too.

    >>> print(markdown_text("a|b <i>"))
    a\|b \<i\>
    """
    return _MARKDOWN.sub(r"\\\g<0>", visible(" ".join(text.splitlines())))


def json_text(value: Any) -> str:
    """The value as JSON, in which the control characters that JSON allows are escaped too."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, indent=2, ensure_ascii=False))


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
