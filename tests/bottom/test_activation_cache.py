"""The activation cache: what is written comes back, what was damaged never does, and processes share it."""

from __future__ import annotations

import errno
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frostline.bottom import ActivationCache, Stream, _shards, check_room, row_bytes
from frostline.bottom._cache import DamagedRow
from frostline.core import cache
from frostline.core.errors import ConfigError, FrostlineError
from frostline.core.files import UNFINISHED, sweep
from grids import slow_but

IDENTITY = {"model": "tiny", "boundary": 3, "forward": {"alpha": 0.5}}
HIDDEN = {"hidden": Stream(4, torch.float32)}
BOTH = {"encoder": Stream(3, torch.bfloat16), "decoder": Stream(5, torch.float16)}


def opened(root: Path, streams: dict[str, Stream] = HIDDEN, identity: dict[str, Any] = IDENTITY) -> ActivationCache:
    return ActivationCache.open(root, identity, streams)


def states(seed: int, length: int = 6) -> dict[str, Tensor]:
    return {"hidden": torch.randn(length, 4, generator=torch.Generator().manual_seed(seed))}


def shard_of(activations: ActivationCache) -> Path:
    (path,) = cache.shards(activations.folder)
    return path


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_come_back_here_and_in_another_opening(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    first = {f"{seed:02x}": states(seed, length) for seed, length in enumerate((6, 1, 9))}
    activations.write(first)
    activations.write({"ff": states(9)})
    for found in (activations, opened(tmp_path), pickle.loads(pickle.dumps(activations))):
        assert len(found) == 4 and "01" in found and "03" not in found
        assert found.missing(["03", "01", "aa", "03"]) == ["03", "aa"]
        assert all(same(found.read(key), row) for key, row in first.items())
        assert same(found.read("ff"), states(9))
    with pytest.raises(KeyError):
        activations.read("03")
    assert contents(activations.folder) == {"identity.json", *(path.name for path in cache.shards(activations.folder))}


def test_half_precision_and_empty_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    every_bfloat16 = torch.cat([patterns, patterns[:2]]).view(torch.bfloat16).reshape(-1, 3)
    rows = {
        "aa": {"encoder": every_bfloat16, "decoder": torch.zeros(0, 5, dtype=torch.float16)},
        "bb": {"encoder": every_bfloat16[:0], "decoder": torch.randn(7, 5).half()},
    }
    activations = opened(tmp_path, BOTH)
    activations.write(rows)
    activations.write({"cc": {name: tensor[:0] for name, tensor in rows["aa"].items()}})
    again = opened(tmp_path, BOTH)
    for key, row in rows.items():
        for name, tensor in again.read(key).items():
            assert tensor.dtype == row[name].dtype and tensor.shape == row[name].shape
            assert torch.equal(tensor.view(torch.int16), row[name].view(torch.int16)), "not a number equals nothing"
    assert [tuple(tensor.shape) for tensor in again.read("cc").values()] == [(0, 3), (0, 5)]


def test_the_size_is_known_before_anything_is_written(tmp_path: Path) -> None:
    activations = opened(tmp_path, BOTH)
    lengths = [{"encoder": length, "decoder": 2 * length} for length in range(40)]
    wanted = sum(row_bytes(BOTH, each) for each in lengths)
    assert wanted == row_bytes(BOTH, {"encoder": 780, "decoder": 1560}) == 780 * 3 * 2 + 1560 * 5 * 2
    activations.write(
        {
            f"{length:064x}": {name: torch.ones(each[name], s.width, dtype=s.dtype) for name, s in BOTH.items()}
            for length, each in enumerate(lengths)
        }
    )
    assert wanted < activations.bytes_on_disk() < wanted + (80 + 15 * len(BOTH)) * len(lengths) + 500


def test_any_change_of_identity_or_streams_is_another_cache(tmp_path: Path) -> None:
    opened(tmp_path).write({"aa": states(0)})
    assert len(opened(tmp_path, identity=dict(reversed(IDENTITY.items())))) == 1
    assert len(opened(tmp_path, identity={**IDENTITY, "boundary": 4})) == 0
    assert len(opened(tmp_path, identity={**IDENTITY, "forward": {"alpha": 0.25}})) == 0
    assert len(opened(tmp_path, {"hidden": Stream(4, torch.bfloat16)})) == 0
    assert len(opened(tmp_path, {"hidden": Stream(8, torch.float32)})) == 0


@pytest.mark.parametrize(
    "row",
    [
        {"hidden": torch.zeros(2, 5)},
        {"hidden": torch.zeros(2, 4, dtype=torch.float64)},
        {"hidden": torch.zeros(1, 2, 4)},
        {"encoder": torch.zeros(2, 4)},
        {"hidden": torch.zeros(2, 4), "decoder": torch.zeros(2, 4)},
    ],
)
def test_states_of_another_form_are_refused(tmp_path: Path, row: dict[str, Tensor]) -> None:
    activations = opened(tmp_path)
    with pytest.raises(ValueError, match="row bb"):
        activations.write({"aa": states(0), "bb": row})
    assert len(activations) == 0 and contents(activations.folder) == {"identity.json"}


def test_what_was_read_may_be_changed(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    activations.read("aa")["hidden"].fill_(7.0)
    assert same(activations.read("aa"), states(0)) and same(opened(tmp_path).read("aa"), states(0))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["length", "header", "key", "truncated", "empty", "longer"])
def test_a_damaged_shard_is_removed_and_its_rows_are_missing(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0), "bb": states(1)})
    damaged = shard_of(activations)
    activations.write({"cc": states(2)})
    content = damaged.read_bytes()
    header = int.from_bytes(content[:8], "little")
    if damage in ("truncated", "empty", "longer"):
        damaged.write_bytes({"truncated": content[:-5], "empty": b"", "longer": content + b"\0"}[damage])
    else:
        flip(damaged, {"length": 0, "header": 9, "key": content.index(b"bb", 8, 8 + header)}[damage])
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path)
    assert again.missing(["aa", "bb", "cc"]) == ["aa", "bb"]
    assert same(again.read("cc"), states(2))
    assert not damaged.exists()
    assert (
        damaged.stem in caplog.text
        and ("checksum" if damage not in ("truncated", "longer") else "bytes") in caplog.text
    )
    again.write({"aa": states(0), "bb": states(1)})
    assert damaged.read_bytes() == content, "equal rows are an equal file"


@pytest.mark.parametrize("damage", ["first byte", "last byte"])
def test_damaged_states_are_found_when_they_are_read(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).write({"aa": states(0), "bb": states(1)})
    opened(tmp_path).write({"cc": states(2)})
    (damaged,) = (path for path in cache.shards(opened(tmp_path).folder) if b"aa" in path.read_bytes())
    content = damaged.read_bytes()
    flip(damaged, -1 if damage == "last byte" else 8 + int.from_bytes(content[:8], "little"))
    bad, sound = ("bb", "aa") if damage == "last byte" else ("aa", "bb")
    again, other = opened(tmp_path), opened(tmp_path)
    assert len(again) == 3, "opening reads no states"
    assert same(again.read(sound), states("ab".index(sound[0])))
    with pytest.raises(DamagedRow, match="train again"):
        again.read(bad)
    assert caplog.text.count(f"{damaged.name} was overwritten or cut off") == 1
    assert not damaged.exists() and again.missing(["aa", "bb", "cc"]) == [bad]
    assert same(again.read(sound), states("ab".index(sound[0]))), "it is open, and was verified as it was read"
    other.check(["cc", bad])
    assert other.missing(["aa", "bb", "cc"]) == ["aa", "bb"], "what is removed is made anew"
    again.write({"aa": states(0), "bb": states(1)})
    assert damaged.read_bytes() == content and len(again) == 3
    other.refresh()
    assert same(other.read(bad), states("ab".index(bad[0]))), "the new file of the same name is found"


def test_a_sound_shard_that_took_the_place_of_a_damaged_one_stays(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    path = shard_of(activations)
    content = path.read_bytes()
    flip(path, -1)
    late = opened(tmp_path)
    path.rename(tmp_path / "damaged")
    path.write_bytes(content)
    with pytest.raises(DamagedRow):
        late.read("aa")
    assert path.read_bytes() == content and same(opened(tmp_path).read("aa"), states(0))


def test_opening_reads_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = opened(tmp_path)
    for shard in range(4):
        activations.write({f"{shard}{row}": states(row, 5000) for row in range(5)})
    read, real = [], os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, views, start: (read.append(len(views[0])), real(file, views, start))[1]
    )
    assert len(opened(tmp_path)) == 20
    assert sum(read) < 0.01 * activations.bytes_on_disk()


@pytest.mark.parametrize("damage", ["one bit", "another shard", "truncated in the row", "truncated before it", "empty"])
def test_a_shard_that_changes_while_it_is_in_use_is_found(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    activations = opened(tmp_path, BOTH)
    rows = {
        name: {"encoder": torch.full((size, 3), size).bfloat16(), "decoder": torch.randn(size, 5).half()}
        for name, size in {"aa": 2, "bb": 4, "cc": 8}.items()
    }
    activations.write(rows)
    shard = shard_of(activations)
    content = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    if damage == "one bit":
        content[content.index(bytes(rows["bb"]["decoder"].view(torch.uint8).numpy()))] ^= 16
    elif damage == "another shard":
        other = opened(tmp_path, BOTH, {"model": "another"})
        other.write({key: {name: tensor * 2 for name, tensor in row.items()} for key, row in rows.items()})
        content[:] = shard_of(other).read_bytes()
    else:
        del content[{"truncated in the row": -5, "truncated before it": start, "empty": 0}[damage] :]
    with shard.open("r+b") as file:  # in place: another file of this name would leave the open one as it is
        file.write(content)
        file.truncate()
    sound = {"one bit": ["aa", "cc"], "truncated in the row": ["aa", "bb"]}.get(damage, [])
    for key, row in rows.items():
        if key in sound:
            assert same(activations.read(key), row)
        else:
            with pytest.raises(DamagedRow, match="train again"):
                activations.read(key)
            assert key not in activations
    assert caplog.text.count(f"{shard.name} was overwritten or cut off") == 1
    again = opened(tmp_path, BOTH)
    assert again.missing(rows) == list(rows), "the next opening computes them anew"


def test_a_row_is_read_although_the_system_gives_it_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0), "bb": states(1)})
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, start: whole(file, [views[0][:7]], start))
    assert same(activations.read("bb"), states(1)) and same(opened(tmp_path).read("aa"), states(0))


MANY = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, HARD))
for seed in range(60):
    activations.write({str(seed): states(seed)})
assert all(torch.equal(activations.read(str(seed))["hidden"], states(seed)["hidden"]) for seed in range(60))
print(len(activations), flush=True)
"""


@pytest.mark.parametrize(
    "hard", slow_but(["40"], ["resource.getrlimit(resource.RLIMIT_NOFILE)[1]", "40"]), ids=["at first", "ever"]
)
def test_more_shards_than_files_that_a_process_may_open(tmp_path: Path, hard: str) -> None:
    running = process(MANY.replace("HARD", hard), tmp_path)
    output, error = running.communicate()
    assert (output.split(), error) == (["open", "60"], "")


def test_shards_are_closed_with_their_cache(tmp_path: Path) -> None:
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = files()
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    activations.write({"bb": states(1)})
    again = opened(tmp_path)
    assert files() == before + 4 and len(again) == 2
    del activations, again
    gc.collect()
    assert files() == before


def test_a_shard_of_another_cache_is_not_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = opened(tmp_path, identity={**IDENTITY, "model": "changed"})
    other.write({"aa": states(0)})
    activations = opened(tmp_path)
    path = shard_of(other)
    activations.folder.mkdir()
    path.rename(activations.folder / path.name)
    activations.refresh()
    assert len(activations) == 0 and "not written for this cache" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    before = contents(tmp_path)

    def full(_: Any, path: Path, **__: Any) -> None:
        Path(path).write_bytes(b"torn")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_shards, "save_file", full)
    with pytest.raises(FrostlineError, match="no space left while writing"):
        activations.write({"bb": states(1)})
    assert contents(tmp_path) == before
    monkeypatch.undo()
    assert activations.missing(["aa", "bb"]) == ["bb"]
    activations.write({"bb": states(1)})
    assert len(opened(tmp_path)) == 2


def test_others_may_read_a_shard_as_far_as_the_users_mask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        activations = opened(tmp_path)
        activations.write({"aa": states(0)})
    finally:
        os.umask(before)
    assert shard_of(activations).stat().st_mode & 0o777 == 0o640


def test_open_shards_serve_on_when_the_cache_is_pruned(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    assert cache.remove(activations.folder)
    assert list((tmp_path / "activations").iterdir()) == []
    activations.refresh()
    assert same(activations.read("aa"), states(0))
    activations.write({"bb": states(1)})
    assert len(opened(tmp_path)) == 1 and cache.entries(tmp_path)[0].identity == IDENTITY


def process(code: str, root: Path) -> subprocess.Popen[str]:
    """A Python process with the activation cache `activations` below `root`."""
    begin = f"""
import sys, time, torch
from pathlib import Path
from frostline.bottom import ActivationCache, Stream
def states(seed):
    return {{"hidden": torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))}}
activations = ActivationCache.open(Path({str(root)!r}), {IDENTITY!r}, {{"hidden": Stream(4, torch.float32)}})
print("open", flush=True)
sys.stdin.readline()
"""
    return subprocess.Popen(
        [sys.executable, "-c", begin + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def begin(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "open\n", child.communicate()[1]
    child.stdin.write("\n")
    child.stdin.flush()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path: Path) -> None:
    watching = opened(tmp_path)
    # Rows 20 to 40 are written by both, and equal shards by both.
    code = """
    for seed in range({first}, {first} + 40):
        activations.write({{f"{{seed:02x}}": states(seed)}})
    """
    children = [process(code.format(first=first), tmp_path) for first in (0, 20)]
    for child in children:
        begin(child)
    while any(child.poll() is None for child in children):
        watching.refresh()
    for child in children:
        assert child.communicate()[1] == "" and child.returncode == 0
    watching.refresh()
    for activations in (watching, opened(tmp_path)):
        assert len(activations) == 60
        assert all(same(activations.read(f"{seed:02x}"), states(seed)) for seed in range(60))
    assert len(cache.shards(watching.folder)) == 60


def test_a_killed_writer_leaves_no_shard(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    activations.write({"aa": states(0)})
    code = """
    from frostline.bottom import _shards
    def slow(tensors, path, **options):
        Path(path).write_bytes(b"torn")
        print("writing", flush=True)
        time.sleep(60)
    _shards.save_file = slow
    with activations.filling():
        activations.write({"bb": states(1)})
    """
    child = process(code, tmp_path)
    begin(child)
    assert line(child) == "writing"
    assert not cache.remove(activations.folder)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (left,) = activations.folder.glob(f"{UNFINISHED}*")
    again = opened(tmp_path)
    with again.filling():
        assert again.missing(["aa", "bb"]) == ["bb"]
    assert sweep(activations.folder, older_than=cache.ABANDONED) == 0 and left.exists(), (
        "it could be another's, at work"
    )
    os.utime(left, (time.time() - 7200,) * 2)
    assert sweep(activations.folder, older_than=cache.ABANDONED) == len(b"torn") and not left.exists()
    assert same(again.read("aa"), states(0))


def test_a_part_is_claimed_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    code = """
    with activations.claimed("part", wait=False) as own, activations.claimed("another", wait=False) as other:
        print(own, other, flush=True)
    with activations.claimed("part", wait=True) as own:
        print(own, len(activations), flush=True)
        sys.stdin.readline()
    """
    waiting = process(code, tmp_path)
    with activations.claimed("part", wait=False) as own:
        assert own
        begin(waiting)
        assert line(waiting) == "False True"
        activations.write({"aa": states(0)})
    assert line(waiting) == "True 1", "what was written while it waited is taken in"
    with activations.claimed("part", wait=False) as own:
        assert not own
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate()
    with activations.claimed("part", wait=False) as own:
        assert own
    assert contents(activations.folder) == {"identity.json", shard_of(activations).name}


@pytest.mark.slow
def test_processes_fill_one_cache_at_once_and_nobody_removes_it(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    filling = process("with activations.filling():\n    print('fills', flush=True)\n    time.sleep(60)", tmp_path)
    begin(filling)
    assert line(filling) == "fills"
    with activations.filling():
        assert not cache.remove(activations.folder)
    assert not cache.remove(activations.folder)
    filling.send_signal(signal.SIGKILL)
    filling.communicate()
    assert cache.remove(activations.folder)


def test_filling_begins_when_the_cache_is_removed_and_then_holds_the_new_one(tmp_path: Path) -> None:
    activations = opened(tmp_path)
    filling = process("with activations.filling():\n    print('fills', flush=True)\n    sys.stdin.readline()", tmp_path)
    with cache.lock(activations.folder):
        begin(filling)
        time.sleep(0.5)
        activations.folder.rename(activations.folder.with_name("aside"))
    assert line(filling) == "fills"
    assert not cache.remove(activations.folder), "the filling process holds the lock that others see"
    filling.communicate("\n")
    assert cache.remove(activations.folder)


def test_room_is_checked_against_the_budget_of_all_caches_and_the_disk(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "yet", 1000, 1000)
    opened(tmp_path).write({"aa": states(0, 1000)})
    opened(tmp_path, identity={"another": 1}).write({"aa": states(0, 1000)})
    check_room(tmp_path, 10_000, 50_000)
    with pytest.raises(
        ConfigError,
        match=r"needs 19.5 KiB, .* may use 48.8 KiB and already use 31.\d KiB: .*activation_cache_limit.*prune",
    ):
        check_room(tmp_path, 20_000, 50_000)
    with pytest.raises(ConfigError, match=r"needs 931,323 GiB, .* GiB are free on the disk of .*prune"):
        check_room(tmp_path, 10**15)


def test_the_root_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", "~/elsewhere")
    assert cache.default_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("FROSTLINE_CACHE")
    assert cache.default_root() == Path.home() / ".cache" / "frostline"
