"""`frostline cache fill`: what it stores is what training would have stored, in shares, side by side, killed or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from command_line import frostline
from frostline.bottom import ActivationCache, _caching_pass
from frostline.core import cache
from frostline.core.errors import CannotWrite, ConfigError
from frostline.run import RunConfig, fill_cache, train
from frostline.run._fill import contents_of
from tiny_files import WORDS, write_model

TINY = {"max_steps": 4, "per_device_train_batch_size": 4, "max_length": 16, "bf16": False, "threads": 1}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_caching_pass, "BATCH_TOKENS", {"cpu": 40})
    monkeypatch.setattr(_caching_pass, "SHARD_BYTES", 4000)


def write_rows(folder: Path, count: int = 30) -> Path:
    """Different sentences of 3 to 10 words."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", count), ("dev", 6)):
        lines = []
        for i in range(rows):
            text = " ".join([WORDS[(i + j) % 10] for j in range(2 + i % 8)] + [f"w{i + 40 * (split == 'dev')}"])
            lines.append(json.dumps({"text": text, "label": ("yes", "no")[i % 2]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config_of(folder: Path, name: str = "llama", **settings: Any) -> RunConfig:
    model, task = folder / name, folder / "rows"
    if not model.exists():
        write_model(model, name)
        write_rows(task)
    given = {"model": str(model), "task": str(task), "strategy": "bot50", "activation_cache": "on", **TINY}
    return RunConfig(**given | settings)


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_CACHE", str(folder))
    return folder


def states_of(root: Path) -> dict[str, bytes]:
    """The bytes of each row in the caches of a folder."""
    found: dict[str, bytes] = {}
    for folder in cache.store_folders(root):
        for path in cache.shards(folder):
            shard = cache.ShardFile(path)
            for index, key in enumerate(shard.keys):
                assert key not in found, "no row is stored twice"
                row = shard.row(index)
                assert row is not None
                found[key] = b"".join(bytes(row[name]) for name in sorted(row))
    return found


def trained(config: RunConfig, out: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The delta of a run, and what it says of its cache."""
    record = train(config.model_copy(update={"out": str(out)}))
    (line,) = (notice for notice in record.notices if notice.startswith("activation cache on: "))
    return load_file(out / "delta.safetensors"), line


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("llama", {}, marks=pytest.mark.slow),
        ("llama", {"eval_steps": 2}),
        pytest.param("llama", {"bf16": True}, marks=pytest.mark.slow),
        pytest.param("llama", {"strategy": "bot50+lora"}, marks=pytest.mark.slow),
        ("llama", {"streaming": True}),
        ("bert", {"pad_to_max_length": True}),
    ],
    ids=["plain", "evaluated", "bf16", "lora", "streaming", "bert"],
)
def test_training_finds_every_row_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    config = config_of(tmp_path, name, **settings)
    own = use_cache(tmp_path / "own", monkeypatch)
    expected, line = trained(config, tmp_path / "first")
    count = len(states_of(own))
    assert f"on: {count} rows, {count} of them passed" in line
    filled = use_cache(tmp_path / "filled", monkeypatch)
    done = fill_cache(config)
    assert (done.rows, done.passed, done.all_rows, done.missing, done.shard) == (count, count, count, 0, "0/1")
    assert states_of(filled) == states_of(own), "bit for bit"
    found, line = trained(config, tmp_path / "second")
    assert f"on: {count} rows, 0 of them passed" in line
    assert same(found, expected)
    assert fill_cache(config).passed == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_are_every_nth_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    root, config = use_cache(tmp_path / "cache", monkeypatch), config_of(tmp_path, streaming=streaming)
    keys = list(contents_of(config).rows)
    for shard in (2, 0, 1):
        before = set(states_of(root))
        done = fill_cache(config, shard, 3)
        assert set(states_of(root)) - before == set(keys[shard::3])
        assert done.rows == done.passed == len(keys[shard::3]) and done.missing == len(keys) - len(states_of(root))
    assert len(cache.store_folders(root)) == 1, "no states of lower blocks are left"
    one_by_one = states_of(root)
    # Another number of shards, and again: what is there is found.
    assert [fill_cache(config, shard, 2).passed for shard in (0, 1, 1)] == [0, 0, 0]
    assert states_of(root) == one_by_one
    assert "0 of them passed" in trained(config, tmp_path / "out")[1]


def test_a_fill_that_was_killed_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = config_of(tmp_path), use_cache(tmp_path / "whole", monkeypatch)
    fill_cache(config)
    root, write = use_cache(tmp_path / "killed", monkeypatch), ActivationCache.write
    for chunks in (1, 2, 1):
        left = iter(range(chunks))

        def killed(own: ActivationCache, rows: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise MemoryError
            write(own, rows)

        monkeypatch.setattr(ActivationCache, "write", killed)
        with pytest.raises(MemoryError):
            fill_cache(config)
    monkeypatch.setattr(ActivationCache, "write", write)
    done = fill_cache(config)
    assert 0 < done.passed < done.rows
    assert states_of(root) == states_of(whole)
    (folder,) = cache.store_folders(root)
    assert {path.name for path in folder.iterdir()} - {path.name for path in cache.shards(folder)} == {
        "identity.json",
        "lock",
    }


def test_more_rows_than_before_pass_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, config = use_cache(tmp_path / "cache", monkeypatch), config_of(tmp_path)
    assert fill_cache(config).passed == 30
    before = states_of(root)
    write_rows(tmp_path / "rows", 45)
    assert (done := fill_cache(config)).passed == 15 and done.rows == 45
    grown = states_of(root)
    assert {key: grown[key] for key in before} == before
    fresh = use_cache(tmp_path / "fresh", monkeypatch)
    fill_cache(config)
    for key, expected in states_of(fresh).items():
        own, other = (torch.frombuffer(bytearray(each), dtype=torch.float32) for each in (grown[key], expected))
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shard", "3/3"], "--shard: '3/3' is no shard: use I/N"),
        (["--shard", "-1/3"], "is no shard"),
        (["--shard", "0/0"], "is no shard"),
        (["--shard", "half"], "is no shard"),
        (["--shard", "0/2", "--ray", "local"], "leave --shard out"),
        (["streaming=true", "--ray", "local"], "use --shard"),
        (["strategy=auto"], "strategy: auto chooses its plan by trials while it trains: use a fixed plan"),
        (["strategy=lisa"], "strategy: lisa changes its plan while it trains: use a fixed plan"),
        (["strategy=all"], "nothing is frozen below the lowest trained block"),
        (["frozen_bits=8"], "frozen_bits: "),
        (["activation_cache=off"], "activation_cache: off"),
        (["training.neftune_noise_alpha=5"], "neftune_noise_alpha acts on the whole model"),
        (["activation_cache_limit=6kB", "--shard", "0/3"], "use a larger activation_cache_limit"),
        (["out=", "no_setting=1"], "no_setting"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_filled_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    root, config = use_cache(tmp_path / "cache", monkeypatch), config_of(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(exclude_unset=True))
    ended = frostline("cache", "fill", path, *given)
    assert ended.status == 2 and said in ended.error and len(ended.error) <= 300
    assert not states_of(root)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_of_caches_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(config_of(tmp_path).model_dump_json(exclude_unset=True))
    (tmp_path / "file").write_text("in its place")
    use_cache(tmp_path / place, monkeypatch)
    ended = frostline("cache", "fill", path)
    assert ended.status == 2 and str(tmp_path / "file") in ended.error


def test_without_ray_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(config_of(tmp_path).model_dump_json(exclude_unset=True))
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = frostline("cache", "fill", path, "--ray", "auto")
    assert (ended.status, ended.error) == (2, "error: --ray: Ray is not installed: use pip install 'frostline[ray]'")


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, config, write = use_cache(tmp_path / "cache", monkeypatch), config_of(tmp_path), ActivationCache.write

    def full(own: ActivationCache, rows: Any) -> None:
        if len(own):
            raise CannotWrite("no space left while writing")
        write(own, rows)

    monkeypatch.setattr(ActivationCache, "write", full)
    with pytest.raises(CannotWrite, match="no space left"):
        fill_cache(config)
    kept = len(states_of(root))
    monkeypatch.setattr(ActivationCache, "write", write)
    done = fill_cache(config)
    assert kept and done.passed == done.rows - kept
    with pytest.raises(ConfigError, match="2/2 is none of 2 shards"):
        fill_cache(config, 2, 2)


def test_the_command_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path / "cache", monkeypatch)
    path = tmp_path / "run.yaml"
    path.write_text(config_of(tmp_path).model_dump_json(exclude_unset=True))
    ended = frostline("cache", "fill", path, "--shard", "1/3")
    assert ended.status == 0 and not ended.err
    first, second = ended.out.splitlines()
    assert first.startswith("rows 1::3 of 30: 10 are in the cache ") and "10 of them passed" in first
    assert second == "20 rows of other shards are not there yet"
    ended = frostline("cache", "fill", path, "--json")
    assert (ended.document["rows"], ended.document["passed"], ended.document["missing"]) == (30, 20, 0)


SIDE = """
import sys, time
from frostline.bottom import _caching_pass
from frostline.core.settings import read_mapping
from frostline.run import fill_cache, read_config
_caching_pass.BATCH_TOKENS, _caching_pass.SHARD_BYTES = {"cpu": 40}, 4000
real = _caching_pass.pass_rows
_caching_pass.pass_rows = lambda *given: (time.sleep(float(sys.argv[4])), real(*given))[1]
from pathlib import Path
done = fill_cache(read_config(Path(sys.argv[1]), []), int(sys.argv[2]), int(sys.argv[3]))
print(done.passed, done.rows, done.missing, flush=True)
"""


def side(path: Path, shard: int, shards: int, pause: float = 0.1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SIDE, str(path), str(shard), str(shards), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_side_by_side_store_what_one_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = config_of(tmp_path), tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(exclude_unset=True))
    alone = use_cache(tmp_path / "alone", monkeypatch)
    for shard in range(2):
        fill_cache(config, shard, 2)
    expected, _ = trained(config, tmp_path / "one")
    # The two shards, one of them twice, and one job for all rows that is killed.
    root = use_cache(tmp_path / "side", monkeypatch)
    jobs = [side(path, *which) for which in ((0, 2), (1, 2), (1, 2))]
    results = [[int(part) for part in job.communicate(timeout=200)[0].split()] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sum(passed for passed, _, _ in results) == 30 and [rows for _, rows, _ in results] == [15, 15, 15]
    assert states_of(root) == states_of(alone)
    weights, line = trained(config, tmp_path / "two")
    assert "0 of them passed" in line and same(weights, expected)


@pytest.mark.slow
def test_a_killed_job_is_taken_over_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = config_of(tmp_path), tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(exclude_unset=True))
    alone = use_cache(tmp_path / "alone", monkeypatch)
    fill_cache(config)
    root = use_cache(tmp_path / "side", monkeypatch)
    killed, other = side(path, 0, 1, 0.6), side(path, 0, 1, 0.6)
    end = time.monotonic() + 120
    while len(list(root.rglob("*.safetensors"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    passed, rows, missing = map(int, other.communicate(timeout=200)[0].split())
    assert (other.returncode, rows, missing) == (0, 30, 0) and passed
    assert states_of(root) == states_of(alone)
    assert fill_cache(config).passed == 0
