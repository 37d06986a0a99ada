"""Rows in the cache: made once, whole or not at all, and never a reason to end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from frostline.core.errors import DataError
from frostline.core.row_files import fault_of, kept_rows

WHAT = {"label": "rows", "holds": "numbers"}
CHILD = """
import sys, time
from pathlib import Path
from frostline.core.row_files import kept_rows

def make(place):
    (place / "a.arrow").write_text("from the child")
    print("making", flush=True)
    time.sleep(float(sys.argv[1]))
    return {"rows": 1}

folder, facts = kept_rows({"holds": "numbers"}, make)
print((folder / "a.arrow").read_text(), flush=True)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Writes a file, and counts how often it did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls, self._error = 0, error

    def __call__(self, place: Path) -> Mapping[str, Any]:
        self.calls += 1
        (place / "a.arrow").write_bytes(b"rows" * 1000)
        if self._error is not None:
            raise self._error
        return {"rows": 7, "notices": ["one"]}


def _child(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_rows_are_made_once(cache: Path) -> None:
    make = Maker()
    for _ in range(3):
        folder, facts = kept_rows(WHAT | {"label": "another name"}, make)
        assert (folder / "a.arrow").stat().st_size == 4000 and facts == {"rows": 7, "notices": ["one"]}
    assert make.calls == 1 and folder.parent == cache / "rows"
    assert [path.stat().st_mode & 0o077 for path in (cache, folder, *folder.iterdir())] == [0] * 6
    kept_rows(WHAT | {"holds": "others"}, make)
    assert make.calls == 2


def _overwritten(folder: Path) -> None:
    with (folder / "a.arrow").open("r+b") as file:
        file.seek(100)
        file.write(b"X")


def _cut(folder: Path) -> None:
    os.truncate(folder / "a.arrow", 10)


def _gone(folder: Path) -> None:
    (folder / "a.arrow").unlink()


def _no_content(folder: Path) -> None:
    (folder / "content.json").write_text('{"files": {"a.arrow": 3}, "facts"')


def _other_content(folder: Path) -> None:
    (folder / "content.json").write_text('{"files": [1], "facts": {}}')


@pytest.mark.parametrize("damage", [_overwritten, _cut, _gone, _no_content, _other_content])
def test_what_is_damaged_is_made_again(damage: Callable[[Path], None], cache: Path) -> None:
    make = Maker()
    folder, _ = kept_rows(WHAT, make)
    damage(folder)
    assert fault_of(folder) is not None
    again, facts = kept_rows(WHAT, make)
    assert (again, make.calls, facts["rows"], fault_of(folder)) == (folder, 2, 7, None)
    assert (folder / "a.arrow").read_bytes() == b"rows" * 1000


def test_rows_that_are_wrong_leave_nothing(cache: Path) -> None:
    make = Maker(DataError("row 3 is wrong"))
    for _ in range(2):
        with pytest.raises(DataError, match="row 3"):
            kept_rows(WHAT, make)
    assert make.calls == 2 and not any((cache / "rows").iterdir())


def test_a_process_that_is_killed_leaves_no_half_rows(cache: Path) -> None:
    killed = _child(60)
    assert killed.stdout is not None and killed.stdout.readline() == "making\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    (folder,) = (cache / "rows").iterdir()
    assert any(path.name.startswith(".unfinished.") for path in folder.iterdir())
    assert kept_rows(WHAT, Maker())[0] == folder
    assert sorted(path.name for path in folder.iterdir()) == ["a.arrow", "content.json", "identity.json", "lock"]


def test_of_two_processes_one_makes_the_rows(cache: Path) -> None:
    first = _child(1.0)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    make, begun = Maker(), time.monotonic()
    folder, facts = kept_rows(WHAT, make)
    assert make.calls == 0 and facts == {"rows": 1} and time.monotonic() - begun > 0.2
    assert (folder / "a.arrow").read_text() == "from the child" == first.stdout.read().strip()
    assert first.wait() == 0
    first.stdout.close()


@pytest.mark.parametrize("why", ["a file", "a full disk"])
def test_a_cache_that_cannot_be_written_ends_nothing(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    if why == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))

        def full(path: Path, value: object) -> None:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr("frostline.core.row_files.write_json", full)
    with caplog.at_level(logging.WARNING):
        folder, facts = kept_rows(WHAT, make)
    assert facts == {"rows": 7, "notices": ["one"]} and (folder / "a.arrow").is_file()
    assert not folder.is_relative_to(tmp_path) and "rows are not kept in" in caplog.text
