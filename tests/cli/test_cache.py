"""`frostline cache`: what is listed, what is found damaged, what is removed and what never is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from frostline.bottom import ActivationCache, Stream
from frostline.cli.main import main
from frostline.core import cache
from frostline.core.files import UNFINISHED
from frostline.core.row_files import kept_rows

STREAMS = {"hidden": Stream(8, torch.float32)}
DAY = 86400.0


def frostline(*arguments: str) -> tuple[int, str, str]:
    """The exit status, standard output and standard error of `frostline cache ...`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["cache", *arguments])
    return status, out.getvalue(), err.getvalue()


def document(*arguments: str) -> Any:
    return json.loads(frostline(*arguments, "--json")[1])


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ActivationCache]:
    """Three stores of 1, 2 and 3 kB or so, used 1, 20 and 40 days ago."""
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    made = []
    for number, age in enumerate((1, 20, 40)):
        store = ActivationCache.open(tmp_path, {"boundary": number}, STREAMS, label=f"model-{number}")
        store.write({f"{number}{row}": {"hidden": torch.ones(30, 8)} for row in range(number + 1)})
        os.utime(store.folder / cache.IDENTITY, (time.time() - age * DAY,) * 2)
        made.append(store)
    return made


def kept(stores: list[ActivationCache]) -> list[int]:
    return [number for number, store in enumerate(stores) if store.folder.exists()]


def test_list_shows_the_one_used_last_first(stores: list[ActivationCache]) -> None:
    status, out, err = frostline("list")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "cache model boundary rows size last used"
    assert [line.split()[:4] for line in lines[1:4]] == [
        [store.folder.name[:12], f"model-{number}", str(number), str(number + 1)] for number, store in enumerate(stores)
    ]
    found = document("list")["stores"]
    assert [entry["bytes"] for entry in found] == [store.bytes_on_disk() for store in stores]
    assert [entry["identity"]["boundary"] for entry in found] == [0, 1, 2]
    used = (stores[0].folder / cache.IDENTITY).stat().st_mtime
    assert found[0]["last_used"].startswith(time.strftime("%Y-%m-%d", time.gmtime(used)))


def test_opening_a_store_is_using_it(stores: list[ActivationCache], tmp_path: Path) -> None:
    ActivationCache.open(tmp_path, {"boundary": 2}, STREAMS, label="the same by another name")
    assert [entry["identity"]["boundary"] for entry in document("list")["stores"]] == [2, 0, 1]


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "none"))
    assert frostline("list") == (0, f"no activation caches in {tmp_path / 'none'}\n", "")
    assert document("list")["stores"] == []
    assert frostline("verify") == (0, "0 shards read, 0 of them damaged\n", "")
    assert frostline("prune", "--all") == (0, f"freed 0 B; 0 B left in {tmp_path / 'none'}\n", "")
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_not_as_expected_is_listed_all_the_same(stores: list[ActivationCache]) -> None:
    (stores[0].folder / cache.IDENTITY).unlink()
    (stores[1].folder / cache.IDENTITY).write_text("[torn")
    (shard,) = cache.shards(stores[2].folder)
    shard.write_bytes(b"\xff" * 20)
    found = {entry["name"]: entry for entry in document("list")["stores"]}
    for number, rows in enumerate((1, 2, 0)):
        assert found[stores[number].folder.name[:12]]["rows"] == rows
    assert found[stores[0].folder.name[:12]]["identity"] == {}
    assert frostline("list")[0] == 0


def test_verify_removes_what_is_damaged(stores: list[ActivationCache]) -> None:
    assert frostline("verify") == (0, "3 shards read, 0 of them damaged\n", "")
    (shard,) = cache.shards(stores[1].folder)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    left = stores[1].folder / f"{UNFINISHED}killed"
    left.mkdir()
    os.utime(left, (time.time() - DAY,) * 2)
    status, out, _ = frostline("verify", "--json")
    found = json.loads(out)
    assert (status, found["shards"]) == (1, 3)
    assert [(each["store"], each["shard"]) for each in found["damaged"]] == [(stores[1].folder.name, shard.name)]
    assert not shard.exists() and not left.exists()
    assert frostline("verify")[0] == 0


def test_verify_says_what_it_removed(stores: list[ActivationCache]) -> None:
    (shard,) = cache.shards(stores[0].folder)
    shard.write_bytes(b"")
    status, out, err = frostline("verify")
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        f"removed {shard.name} of {stores[0].folder.name}: its header does not match the checksum in its name",
        "3 shards read, 1 of them damaged",
    ]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--all"], []),
        (["--older-than", "30d"], [0, 1]),
        (["--older-than", "12h"], []),
        (["--older-than", "9w"], [0, 1, 2]),
        (["--max-size", "1GB"], [0, 1, 2]),
        (["--max-size", "4kB"], [0, 1]),
        (["--max-size", "2kB"], [0]),
        (["--max-size", "0"], []),
        (["--older-than", "30d", "--max-size", "2kB"], [0]),
        (["--older-than", "10d", "--max-size", "4kB"], [0]),
    ],
)
def test_prune_removes_what_was_asked_for(stores: list[ActivationCache], options: list[str], left: list[int]) -> None:
    sizes = [store.bytes_on_disk() for store in stores]
    done = document("prune", *options)
    assert kept(stores) == left
    assert {entry["identity"]["boundary"] for entry in done["removed"]} == {0, 1, 2} - set(left)
    assert done["freed_bytes"] == sum(sizes) - done["left_bytes"]
    assert done["left_bytes"] == sum(sizes[number] for number in left)
    assert all(torch.equal(store.read(f"{n}0")["hidden"], torch.ones(30, 8)) for n, store in enumerate(stores))


def test_prune_by_name(stores: list[ActivationCache], tmp_path: Path) -> None:
    name, size = stores[1].folder.name, stores[1].bytes_on_disk()
    status, out, _ = frostline("prune", name[:12], name)
    assert status == 0 and kept(stores) == [0, 2]
    assert out.splitlines()[0] == f"removed {name[:12]}: {size / 1024:.3g} KiB"
    assert out.splitlines()[1].startswith(f"freed {size / 1024:.3g} KiB; ")
    status, out, err = frostline("prune", "xyz")
    assert (status, out) == (2, "") and err.startswith("error: unknown activation cache 'xyz': ")
    assert stores[0].folder.name[:12] in err and kept(stores) == [0, 2]
    (tmp_path / "activations" / f"{stores[0].folder.name[:12]}0").mkdir()
    status, _, err = frostline("prune", stores[0].folder.name[:12])
    assert status == 2 and "beginning of several" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["abc", "--all"], ["--all", "--max-size", "0"], ["abc", "--older-than", "1d"]])
def test_prune_wants_to_be_told_what(stores: list[ActivationCache], options: list[str]) -> None:
    status, out, err = frostline("prune", *options)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert "--all" in err and "--older-than 30d" in err and "--max-size 20GB" in err
    assert kept(stores) == [0, 1, 2]


@pytest.mark.parametrize("options", [["--older-than", "soon"], ["--max-size", "big"]])
def test_prune_does_not_guess(stores: list[ActivationCache], options: list[str]) -> None:
    status, _, err = frostline("prune", *options)
    assert status == 2 and options[0] in err and kept(stores) == [0, 1, 2]


def test_a_store_that_a_running_process_fills_is_kept(stores: list[ActivationCache]) -> None:
    with stores[2].filling():
        status, out, _ = frostline("prune", "--all")
        assert status == 1 and kept(stores) == [2]
        assert f"kept {stores[2].folder.name[:12]}: a running process holds its lock" in out.splitlines()
        assert document("prune", "--max-size", "0")["in_use"][0]["name"] == stores[2].folder.name[:12]
    assert frostline("prune", "--all")[0] == 0 and kept(stores) == []


def test_prune_sweeps_what_killed_processes_left(stores: list[ActivationCache], tmp_path: Path) -> None:
    for folder in (tmp_path / "activations", stores[0].folder):
        for name, age in (("old", DAY), ("young", 60.0)):
            left = folder / f"{UNFINISHED}{name}"
            left.mkdir()
            (left / "shard").write_bytes(bytes(500))
            os.utime(left, (time.time() - age,) * 2)
    assert document("prune", "--older-than", "1w", "--max-size", "1GB")["freed_bytes"] >= 1000
    assert [path.name for path in tmp_path.rglob(f"{UNFINISHED}*")] == [f"{UNFINISHED}young"] * 2


@pytest.mark.parametrize("command", [["verify"], ["prune", "--older-than", "1w"]], ids=["verify", "prune"])
def test_claims_of_killed_processes_are_removed_and_others_stay(
    stores: list[ActivationCache], command: list[str]
) -> None:
    (stores[0].folder / f"killed{cache.CLAIM}").touch()
    with stores[0].claimed("held", wait=False):
        assert frostline(*command)[0] == 0
        assert [path.name for path in stores[0].folder.glob(f"*{cache.CLAIM}")] == [f"held{cache.CLAIM}"]
    assert not list(stores[0].folder.glob(f"*{cache.CLAIM}"))


def test_a_command_that_is_none() -> None:
    assert frostline("lst") == (
        2,
        "",
        "error: unknown cache command 'lst': did you mean 'list'? known: fill, list, prune, verify\n",
    )
    assert frostline()[0] == 2


def test_nothing_heavy_is_imported(stores: list[ActivationCache]) -> None:
    code = """
import sys
from frostline.cli.main import main
for arguments in (["list"], ["verify"], ["prune", "--all"], ["prune", "--help"]):
    assert main(["cache", *arguments]) == 0
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kept(stores) == []


def test_rows_are_listed_verified_and_removed_too(stores: list[ActivationCache], tmp_path: Path) -> None:
    def make(place: Path) -> dict[str, int]:
        (place / "a.arrow").write_bytes(b"x" * 5000)
        return {"rows": 12}

    folder, _ = kept_rows({cache.LABEL: "rows of a.jsonl"}, make)
    newest = document("list")["stores"][0]
    assert (newest["folder"], newest["model"], newest["rows"], newest["bytes"]) == (
        *(str(folder), "rows of a.jsonl", 12, 5000),
    )
    assert "rows of a.jsonl" in frostline("list")[1]
    assert document("verify")["shards"] == 4
    (folder / "a.arrow").write_bytes(b"x" * 4999)
    (damaged,) = document("verify")["damaged"]
    assert damaged["store"] == folder.name and "a.arrow" in damaged["fault"]
    assert document("prune", folder.name)["removed"][0]["bytes"] == 4999
    assert not folder.exists() and kept(stores) == [0, 1, 2]
