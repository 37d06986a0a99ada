"""The report in a browser: it opens without an error or a request, sorts and filters, and anyone can use it.

Without Chromium these tests are skipped, and without axe-core those of axe (`.ci/run` fetches both).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
from browser import Browser
from frostline.records import write_record
from frostline.report import write_report
from grids import slow_but
from made_records import run
from made_studies import write_study

AXE = Path(os.environ.get("FROSTLINE_AXE", "axe.min.js"))
WIDE, NARROW = 1280, 390

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium: use `apt-get install chromium`")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study with everything in it, runs without a result too."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    write_record(run("top50", status="failed", error="the loss is nan").record, folder / "failed")
    write_record(run("top50", status="running").record, folder / "stopped")
    return write_report(folder)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A report where one value is no number."""
    for name, accuracy in (("all", 0.5), ("lora", math.nan), ("head", 0.9), ("bot50", 0.7)):
        write_record(run(name, accuracy=accuracy).record, tmp_path / name)
    return write_report(tmp_path)


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Browser]:
    with Browser() as opened:
        opened.open(report)
        yield opened


def column(page: Browser, place: int) -> list[Any]:
    """The texts of a column of the first table."""
    found: list[Any] = page.run(
        f"[...document.querySelector('table.main').tBodies[0].rows].map(row => row.cells[{place}].textContent.trim())"
    )
    return found


def test_it_opens(page: Browser, report: Path) -> None:
    assert page.errors == []
    assert page.requests == [report.resolve().as_uri()], "one file, and nothing else"
    figures = page.run("[...document.querySelectorAll('figure')].map(f => [f.id, f.querySelector('svg').clientWidth])")
    assert len(figures) == 23 and all(width > 200 for _, width in figures), figures


def test_it_sorts(page: Browser) -> None:
    def press(place: int) -> str:
        page.run(f"document.querySelectorAll('table.main')[0].querySelectorAll('.sort')[{place}].click()")
        state: str = page.run(f"document.querySelector('table.main').tHead.rows[0].cells[{place}].ariaSort")
        return state

    assert press(1) == "ascending"
    values = [float(text.split()[0]) for text in column(page, 1)]
    assert values == sorted(values) and len(values) == 7
    assert press(1) == "descending"
    assert [float(text.split()[0]) for text in column(page, 1)] == sorted(values, reverse=True)
    assert press(0) == "ascending" and column(page, 0) == sorted(column(page, 0))
    assert page.run("document.querySelector('table.main').tHead.rows[0].cells[1].ariaSort") == "none"


def test_what_is_no_number_is_sorted_last(odd: Path) -> None:
    with Browser() as own:
        own.open(odd)
        for expected in (["0.500", "0.700", "0.900", "nan"], ["0.900", "0.700", "0.500", "nan"]):
            own.run("document.querySelectorAll('table.main')[0].querySelectorAll('.sort')[1].click()")
            assert column(own, 1) == expected


def test_it_filters(page: Browser) -> None:
    def ask(text: str) -> None:
        page.run(f"filter.value = {text!r}; filter.dispatchEvent(new Event('input'))")

    def visible(selector: str) -> int:
        count: int = page.run(
            f"[...document.querySelectorAll({selector!r})].filter(e => e.getClientRects().length).length"
        )
        return count

    drawn = visible("#g0-time svg g[data-strategy]")
    ask("LORA")
    assert visible("#g0 table.main tbody tr") == 1 and visible("#g0-time svg g[data-strategy]") == 1 < drawn
    assert visible("#g0-loss .legend li") == 1
    assert page.run("document.getElementById('shown').textContent") == "1 of 8 strategies", "one has no result"
    ask("")
    assert visible("#g0 table.main tbody tr") == 7 and visible("#g0-time svg g[data-strategy]") == drawn


def test_it_is_used_by_keyboard(page: Browser) -> None:
    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    seen = []
    for _ in range(12):
        page.press("Tab", 9)
        seen.append(page.run("document.activeElement.className || document.activeElement.id || 'a'"))
        style = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", f"{seen[-1]}: what has the focus is not shown"
    assert seen[0] == "skip" and "filter" in seen and "sort" in seen
    before = column(page, 0)
    page.run("document.querySelector('table.main .sort').focus()")
    page.press("Enter", 13, "\r")
    assert column(page, 0) == before[::-1] or column(page, 0) == sorted(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_is_wider_than_the_window(page: Browser, width: int, scheme: str) -> None:
    page.look(width, scheme=scheme)
    assert page.run("document.documentElement.scrollWidth") <= width
    light = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(245, 247, 250)"
    assert light == (scheme == "light")


def test_it_prints(page: Browser) -> None:
    page.look(WIDE, scheme="dark", media="print")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.run("document.getElementById('filter').checkVisibility()")
    assert page.call("Page.printToPDF")["data"].startswith("JVBERi0")


@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: use FROSTLINE_AXE=axe.min.js (`npm pack axe-core` has it)")
@pytest.mark.parametrize(("width", "scheme"), slow_but([(WIDE, "light")], [(WIDE, "light"), (NARROW, "dark")]))
def test_contrast_and_labels(page: Browser, report: Path, width: int, scheme: str) -> None:
    page.open(report)
    page.look(width, scheme=scheme)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; }); 0")
    page.run(f"{AXE.read_text()}; 0")
    told = "v => [v.id, v.nodes[0].html, v.nodes[0].failureSummary]"
    found = page.run(f"axe.run().then(r => ({{wrong: r.violations.map({told}), right: r.passes.map(p => p.id)}}))")
    assert found["wrong"] == []
    assert {"color-contrast", "label", "svg-img-alt"} <= {*found["right"]}, "what was looked at"
