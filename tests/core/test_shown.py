"""Nothing that others wrote can act on a terminal, a Markdown page or the line around it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from frostline.core.console import PlainConsole
from frostline.core.figures import figure_text, new_figure, write_figure
from frostline.core.shown import json_text, markdown_text, one_line, shortened, visible

EVIL = "a\x1b[31m\x07\x9b2J\u202eb\x7f\r\u2028\ud800"
WRITTEN = r"a\x1b[31m\x07\x9b2J\u202eb\x7f\x0d\u2028\ud800"


def test_control_characters_are_written_out() -> None:
    assert visible(EVIL) == WRITTEN
    assert visible("grün\n\t漢字 ± 🙂") == "grün\n\t漢字 ± 🙂"


def test_json_says_the_same_without_them() -> None:
    text = json_text({"name": EVIL})
    assert text.isascii()
    assert "\x7f" not in text
    assert json.loads(text) == {"name": EVIL}
    assert json_text({"a": "grün"}) == '{\n  "a": "grün"\n}'


def test_a_line_has_at_most_300_characters_and_keeps_its_advice() -> None:
    value = "x" * 9000
    line = one_line(f"error: /some/place: unknown key '{value}': did you mean 'rows'? use\none of them")
    assert len(line) == 300
    assert line.startswith("error: /some/place: unknown key 'xxx")
    assert line.endswith("xxx': did you mean 'rows'? use one of them")
    assert len(one_line("a b " * 500)) == 300
    assert len(one_line("\x1b" * 500)) == 300
    assert one_line("short") == "short"


@pytest.mark.parametrize("most", [10, 11, 57])
def test_what_is_too_long_loses_its_middle(most: int) -> None:
    assert len(shortened("abcdefghij" * 9, most)) == most
    assert shortened("abc", most) == "abc"


def test_markdown_shows_just_the_text() -> None:
    text = markdown_text("a|b\n# <script>`x`</script> [l](u) *b* \x1b")
    assert text == r"a\|b # \<script\>\`x\`\</script\> \[l\](u) \*b\* \\x1b"


def test_a_terminal_shows_just_the_text() -> None:
    console = PlainConsole()
    console.file = out = io.StringIO()
    table = Table("[/red]")
    table.add_row("[bold]x[/] \x1b]0;title\x07")
    for part in (table, Text("[/x] \x9b"), "[/y] :smile: \x1b[2J"):
        console.print(part)
    shown = out.getvalue()
    assert all(
        text in shown for text in ("[/red]", "[bold]x[/] \\x1b]0;title\\x07", "[/x] \\x9b", "[/y] :smile: \\x1b[2J")
    )
    assert not any(sign in shown for sign in "\x1b\x07\x9b")


def test_a_warning_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    import frostline.core.quiet  # noqa: F401

    assert logging.lastResort is not None
    logging.lastResort.handle(logging.makeLogRecord({"msg": EVIL, "levelno": logging.WARNING}))
    assert capsys.readouterr().err == f"{WRITTEN}\n"


@pytest.mark.parametrize("name", ["a$b^", "$\\frac$", EVIL, "$", "\\$x_$"])
def test_a_name_in_a_figure_is_no_formula(name: str, tmp_path: Path) -> None:
    figure = new_figure(2, 2)
    figure.suptitle(figure_text(name))
    write_figure(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 0
