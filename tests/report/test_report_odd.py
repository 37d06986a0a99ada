"""Reports of rare things: points close together, losses that are not finite, long names, a closed folder."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import pytest
from rich.console import Console

from command_line import frostline
from frostline.core.errors import UserError
from frostline.records import write_record
from frostline.report import csv_text, document, markdown, tabulate, view, write_report
from made_records import run

NAMES = ("all", "bot25", "bot50", "head", "lisa", "lora", "semantic", "top50", "badam", "bitfit")
LABEL = re.compile(r'<text class="label" x="([\d.]+)" y="([\d.]+)" data-strategy="[^"]+">([^<]+)</text>')


def scatter(folder: Path) -> str:
    page = write_report(folder).read_text()
    found = re.search(r'<figure id="g0-time".*?</figure>', page, flags=re.S)
    assert found
    return found[0]


def write_rows(folder: Path, apart: float) -> None:
    for i, name in enumerate(NAMES):
        made = run(name, accuracy=0.5 + apart * (i % 4), seconds=50 + apart * 100 * i)
        write_record(made.record, folder / name)


def test_names_of_close_points_do_not_cover_each_other(tmp_path: Path) -> None:
    write_rows(tmp_path, apart=0.0001)
    write_record(run("int50", accuracy=0.9, seconds=5.0).record, tmp_path / "int50")
    figure = scatter(tmp_path)
    labels = [(float(x), float(y), text) for x, y, text in LABEL.findall(figure)]
    assert labels and len(labels) < len(NAMES) + 1 and "no room for a name" in figure
    assert "int50" in [text for *_, text in labels], "the front comes first"
    for (x, y, text), (a, b, _) in combinations(sorted(labels), 2):
        assert x + 7.2 * len(text) <= a or abs(y - b) >= 14, (text, x, y, a, b)
    assert all(f"</svg>{name}</li>" in figure for name in NAMES), "the legend has all"


def test_where_there_is_room_every_point_has_its_name(tmp_path: Path) -> None:
    write_rows(tmp_path, apart=0.1)
    figure = scatter(tmp_path)
    assert {text for *_, text in LABEL.findall(figure)} == set(NAMES) and "no room for a name" not in figure


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_a_loss_that_is_not_finite(tmp_path: Path, odd: float) -> None:
    runs = [run("all", 1, accuracy=0.5), run("all", 2, accuracy=0.6)]
    runs += [run("lora", 1, accuracy=odd), run("lora", 2, accuracy=0.9), run("head", 1, accuracy=0.4)]
    for one in runs:
        write_record(one.record, tmp_path / one.label / f"seed{one.record.seed}")
    table = tabulate(runs)
    ranks = {row.strategy: row.rank for row in table.groups[0].rows}
    assert ranks == {"all": 1, "lora": None, "head": 2}, "it is not compared"
    shown = Console(width=200, record=True, quiet=True)
    shown.print(*view(table))
    assert "Use all" in markdown(table) and str(odd) in markdown(table)
    assert document(table) and csv_text(table)
    page = write_report(tmp_path).read_text()
    assert "not drawn" not in page and "Use <strong>all</strong>" in page
    assert not re.search(r'(?:[xy][12]?|d|width)="[^"]*(?:nan|inf)', page), "no mark stands nowhere"


def test_a_long_name_leaves_the_numbers_room() -> None:
    runs = [run("all"), run("lora", label="lora (learning_rate=0.0001, lr_scheduler_type=linear, weight_decay=0.01)")]
    shown = Console(width=80, record=True)
    for part in view(tabulate(runs)):
        shown.print(part)
    text = shown.export_text()
    assert "accuracy" in text and "0.500" in text and "25.0%" in text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_record(run().record, tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written: .*use a folder in which you may write"):
        write_report(tmp_path)
    ended = frostline("report", tmp_path, "--format", "html")
    assert ended.status == 2 and ".unfinished" not in ended.error
