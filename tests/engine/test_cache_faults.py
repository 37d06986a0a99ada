"""What may go wrong with an activation cache: a kill, damage, a full disk, company, and inputs that are not what
they were."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import frostline.bottom._shards as shards
import frostline.bottom._weights as weights
from architectures import tiny
from cache_cases import assert_same_training, bottom_plan, cache_trainer, losses, rows_for, streaming_trainer, train
from frostline.checkpoints import load_config, load_weights
from frostline.core import cache
from frostline.core.errors import ConfigError, FrostlineError
from frostline.engine import Trainer
from frostline.plan import Lora
from grids import slow_but

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def llama(folder: Path, mode: str = "on", **options: Any) -> Trainer:
    return train(folder, tiny("llama"), mode, **options)


def stored(folder: Path) -> list[Path]:
    """The shards of all caches of this test."""
    return [path for place in cache.store_folders(folder / "cache") for path in cache.shards(place)]


def written(folder: Path) -> set[str]:
    """Every file of all caches but what a cache is described and locked by."""
    return {path.name for path in (folder / "cache").rglob("*") if path.is_file()} - {"identity.json", "lock"}


# Another process, which may be killed. Each row is a shard, and takes its time.
SLOW = """
    import json, sys, time
    from pathlib import Path
    import torch
    import frostline.bottom._caching_pass as caching_pass
    from architectures import tiny
    from cache_cases import cache_trainer, losses

    torch.set_num_threads(1)
    caching_pass.SHARD_BYTES, caching_pass.BATCH_TOKENS = 1, {"cpu": 1}
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    trainer = cache_trainer(folder, tiny("llama"), "on")
    trainer.session.progress = lambda done, rows: time.sleep(seconds)
    (folder / "ready").touch()
    while not (folder.parent / "go").exists():
        time.sleep(0.01)
    trainer.train()
    report = trainer.cache_report
    found = {"losses": losses(trainer), "used": report.used, "rows": report.rows, "found": report.found}
    (folder / "found.json").write_text(json.dumps(found))
"""


def another_process(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that trains in `folder`, once there is a file `go` beside it."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(folder), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def wait_until(true: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_stopped(tmp_path: Path) -> None:
    process = another_process(tmp_path / "killed", 0.3)
    (tmp_path / "go").touch()
    wait_until(lambda: len(stored(tmp_path)) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(stored(tmp_path))
    assert 3 <= kept < 12
    after = llama(tmp_path)
    assert (after.cache_report.found, after.cache_report.rows) == (kept, 12 - kept)
    assert_same_training(after, llama(tmp_path, "off"))


@pytest.mark.slow
def test_two_processes_at_once_pass_each_row_once(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = [another_process(folder, 0.05) for folder in folders]
    for folder, process in zip(folders, processes, strict=True):
        wait_until((folder / "ready").exists, process)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = [json.loads((folder / "found.json").read_text()) for folder in folders]
    assert all(own["used"] for own in found)
    assert all(own["rows"] + own["found"] == 12 for own in found)
    assert len(stored(tmp_path)) == 12, "each row passed once, in one of the two"
    assert found[0]["losses"] == found[1]["losses"] == pytest.approx(losses(llama(tmp_path, "off")), abs=1e-4)


def test_a_killed_streaming_pass_goes_on_at_its_block(tmp_path: Path) -> None:
    passages: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        if done > 17:  # 12 rows and 5 to evaluate
            raise MemoryError  # unlike Ctrl-C, after which the rows that passed are still written

    killed = streaming_trainer(tmp_path, tiny("llama"), 3)
    killed.session.progress = stop
    with pytest.raises(MemoryError):
        killed.train()
    after = streaming_trainer(tmp_path, tiny("llama"), 3)
    after.session.progress = lambda done, total: passages.append((done, total))
    after.train()
    assert passages[-1] == (34, 34)  # the first of three blocks was done
    assert losses(after) == pytest.approx(losses(llama(tmp_path, "off", boundary=3)), abs=1e-4)
    assert len(cache.store_folders(tmp_path / "cache")) == 1


def test_an_interrupted_pass_loses_no_row(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    stopped = cache_trainer(tmp_path, tiny("llama"), "on")
    stopped.session.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert llama(tmp_path).cache_report.rows == 0  # all of them passed in the one batch that was interrupted


@pytest.mark.parametrize(
    "damage", slow_but(["a flipped byte", "swapped"], ["a flipped byte", "truncated", "empty", "swapped"])
)
def test_a_damaged_shard_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    before = llama(tmp_path)
    (shard,) = stored(tmp_path)
    content = bytearray(shard.read_bytes())
    if damage == "a flipped byte":
        content[-5] ^= 1
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    else:
        other = llama(tmp_path, rows=rows_for(tiny("llama"), seed=5))
        assert other.cache_report.rows == 12
        (another,) = set(stored(tmp_path)) - {shard}
        content[:] = another.read_bytes()
        another.unlink()
    shard.write_bytes(content)
    if damage == "a flipped byte":  # found when its row is read
        assert (found := llama(tmp_path).cache_report).found == 12 and found.computed > 0
    after = llama(tmp_path)
    assert (after.cache_report.rows, after.cache_report.found) == (12, 0)
    assert losses(after) == losses(before)
    assert "removed the shard" in caplog.text or "overwritten or cut off" in caplog.text
    assert shard.read_bytes() != content


class Damage(TrainerCallback):
    """Before step 2, the stored states are changed in place."""

    def __init__(self, folder: Path, cut: bool) -> None:
        self.folder, self.cut = folder, cut

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            (shard,) = stored(self.folder)
            size = shard.stat().st_size
            with shard.open("r+b") as file:
                file.truncate(size // 2 if self.cut else size)
                file.seek(size // 2)
                file.write(b"" if self.cut else bytes(size // 2))


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_damaged_while_a_run_trains_from_it(
    tmp_path: Path, cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = cache_trainer(tmp_path, tiny("llama"), "on")
    trainer.add_callback(Damage(tmp_path, cut))
    trainer.train()
    assert_same_training(trainer, llama(tmp_path, "off"))
    assert "overwritten or cut off" in caplog.text
    assert trainer.cache_report.used and 3 <= trainer.cache_report.computed < 9
    after = llama(tmp_path)
    assert (after.cache_report.rows, after.cache_report.found) == (12, 0), "the damaged shard is not used again"


def test_one_damaged_shard_among_sound_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.bottom._caching_pass.SHARD_BYTES", 1)
    monkeypatch.setattr("frostline.bottom._caching_pass.BATCH_TOKENS", {"cpu": 18})
    before = llama(tmp_path)
    found = stored(tmp_path)
    assert len(found) > 3
    content = found[1].read_bytes()
    found[1].write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    after = llama(tmp_path)
    report = after.cache_report
    assert 0 < report.rows <= 4 or (report.rows == 0 and 3 <= report.computed < 9), "found by the checks, or later"
    assert losses(after) == pytest.approx(losses(before), abs=1e-4)
    again = llama(tmp_path).cache_report
    assert again.computed == 0 and again.rows + again.found == 12 and 0 < report.rows + again.rows <= 4
    assert losses(llama(tmp_path)) == losses(before)


@pytest.mark.parametrize("where", ["shard", "weights"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(tensors: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"torn")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards if where == "shard" else weights, "save_file", full)
    model = tiny("llama")
    modules, state = dict(model.named_modules()), {key: value.clone() for key, value in model.state_dict().items()}
    trainer = cache_trainer(tmp_path, model, "on")
    with pytest.raises(FrostlineError, match=r"^no space left while writing [^\n]*$"):
        trainer.train()
    assert len(stored(tmp_path)) == (0 if where == "shard" else 1)
    assert written(tmp_path) == {path.name for path in stored(tmp_path)}
    assert all(modules[name] is module for name, module in model.named_modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not trainer.session.active
    monkeypatch.undo()
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    trainer.train()
    assert trainer.cache_report.used
    assert losses(trainer) == pytest.approx(losses(llama(tmp_path, "off")), abs=1e-4)


def unwritable(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder / "cache"
    if how == "a file":
        root.write_text("in its place")
    elif how == "below a file":
        root.write_text("in its place")
        monkeypatch.setenv("FROSTLINE_CACHE", str(root / "cache"))
    elif how == "read-only":

        def refuse(path: Path, *_: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr(cache, "write_json", refuse)
    else:

        def full(tensors: Any, path: Path, **_: Any) -> None:
            Path(path).write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr({"full: shards": shards, "full: weights": weights}[how], "save_file", full)


@pytest.mark.parametrize(
    "how",
    slow_but(
        ["below a file", "full: shards"], ["a file", "below a file", "read-only", "full: shards", "full: weights"]
    ),
)
def test_a_cache_that_cannot_be_written_ends_no_run_that_does_not_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    plain = llama(tmp_path / "plain", "off")
    unwritable(tmp_path, how, monkeypatch)
    without = llama(tmp_path / "auto", "auto")
    assert losses(without) == losses(plain)
    wanted = plain.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in without.model.state_dict().items())
    assert not without.cache_report.used and without.cache_report.declined
    (notice,) = without.notices
    said = (
        "no space left while writing" if how.startswith("full") else f"{os.environ['FROSTLINE_CACHE']} cannot be used"
    )
    assert notice.startswith("no activation cache: ") and said in notice
    with pytest.raises(FrostlineError, match=said):
        llama(tmp_path / "on", "on")


def test_a_cache_that_is_lost_while_it_is_read_ends_no_run(tmp_path: Path) -> None:
    class Lose(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            (tmp_path / "cache").write_text("in its place") if not (tmp_path / "cache").exists() else None

    plain, lost = llama(tmp_path / "plain", "off"), cache_trainer(tmp_path / "lost", tiny("llama"), "auto")
    lost.add_callback(Lose())
    lost.train()
    assert lost.cache_report.used
    assert losses(lost) == pytest.approx(losses(plain), abs=1e-4)


def test_too_small_a_budget(tmp_path: Path) -> None:
    said = r"the activation cache needs 9\.75 KiB, but all caches together may use 8\.79 KiB .*limit"
    with pytest.raises(ConfigError, match=f"^{said}"):
        llama(tmp_path, "on", limit=9_000)
    without = llama(tmp_path, "auto", limit=9_000)
    assert not without.cache_report.used and re.match(said, without.cache_report.reason)
    assert not list((tmp_path / "cache").rglob("*"))
    assert llama(tmp_path, "auto", limit=10_000).cache_report.bytes == 78 * 32 * 4


def saved_model(folder: Path, seed: int) -> Any:
    tiny("llama", seed=seed).save_pretrained(folder)
    config = load_config(str(folder))
    return load_weights(str(folder), type(tiny("llama")), config)


def test_a_changed_model_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    first = train(tmp_path, saved_model(tmp_path / "model", 0), "on")
    again = train(tmp_path, saved_model(tmp_path / "model", 0), "on")
    assert (first.cache_report.rows, again.cache_report.rows, again.cache_report.found) == (12, 0, 12)
    changed = train(tmp_path, saved_model(tmp_path / "model", 1), "on")
    assert (changed.cache_report.rows, changed.cache_report.found) == (12, 0)
    assert_same_training(changed, train(tmp_path, saved_model(tmp_path / "model", 1), "off"))
    assert len(cache.store_folders(tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("name", "above"), [("model.layers.1.mlp.up_proj.weight", False), ("model.layers.2.mlp.up_proj.weight", True)]
)
def test_one_changed_weight(tmp_path: Path, name: str, above: bool) -> None:
    llama(tmp_path)
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter(name)[0, 0] += 1e-3
    assert train(tmp_path, model, "on").cache_report.found == (12 if above else 0)


def test_only_a_changed_row_passes(tmp_path: Path) -> None:
    llama(tmp_path)
    rows = rows_for(tiny("llama"))
    rows[3]["input_ids"][2] = 5
    changed = llama(tmp_path, rows=rows)
    assert (changed.cache_report.rows, changed.cache_report.found) == (1, 11)
    assert_same_training(changed, llama(tmp_path, "off", rows=rows))
    for row in rows:
        row["labels"] = row["input_ids"]  # which nothing below the boundary reads
    assert llama(tmp_path, rows=rows).cache_report.rows == 0


class Changing(list[Any]):
    """Rows of which one becomes another after it has been read `times` times."""

    def __init__(self, rows: Any, times: int) -> None:
        super().__init__(rows)
        self.left = times

    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)
        if index != 3:
            return row
        self.left -= 1
        return row if self.left >= 0 else row | {"input_ids": row["input_ids"][::-1]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_changes_while_training_runs_the_bottom(tmp_path: Path, workers: int) -> None:
    """Read once for the cache; from then on it is another row."""
    trainers = []
    for mode, times in (("on", 1), ("off", 0)):
        rows = Changing(rows_for(tiny("llama")), times)
        trainers.append(train(tmp_path, tiny("llama"), mode, rows=rows, dataloader_num_workers=workers))
    assert_same_training(*trainers)
    assert trainers[0].cache_report.computed == 3
    assert "3 training batches held rows that are not in the activation cache" in trainers[0].notices[-1]


def test_the_same_bottom_is_found_again(tmp_path: Path) -> None:
    model = tiny("llama")
    assert llama(tmp_path, seed=1).cache_report.rows == 12
    others = [
        llama(tmp_path, seed=2, learning_rate=5e-5, per_device_train_batch_size=3),
        llama(tmp_path, plan=bottom_plan(model, 2, Lora(r=2))),
        llama(tmp_path, rows=rows_for(model)[5:], optim="adamw_torch", gradient_accumulation_steps=2),
    ]
    for other in others:
        assert other.cache_report.rows == 0
        assert other.cache_report.found == len(other.train_dataset)
        assert "0 of them passed" in other.cache_report.reason
    assert llama(tmp_path, boundary=3).cache_report.found == 0
    assert llama(tmp_path, bf16=True).cache_report.found == 0


class ScaledGradient(torch.autograd.Function):
    """The states as they are, and their gradient times `scale`."""

    @staticmethod
    def forward(context: Any, states: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(scale)
        return states.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        return gradient * context.saved_tensors[0], None


def leaking(how: str) -> Any:
    """A model whose third block reads what the first was given: past the boundary."""
    model = tiny("llama")
    first, third = model.model.layers[0], model.model.layers[2]
    left: dict[str, torch.Tensor] = {}
    real_first, real = first.forward, third.forward

    def remember(hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        left["here"] = hidden_states
        return real_first(hidden_states, *args, **options)

    def forward(hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        read = left["here"] if how == "shape" else left["here"].abs().sum()
        if how == "gradient":
            return ScaledGradient.apply(real(hidden_states, *args, **options), read)
        return real(hidden_states + read, *args, **options)

    first.forward, third.forward = remember, forward
    return model


@pytest.mark.parametrize("batch", slow_but([4], [1, 4]))
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("value", "crosses the boundary: without the bottom its loss"),
        ("gradient", "crosses the boundary: without the bottom its gradient"),
        ("shape", "crosses the boundary: without the bottom it fails"),
    ],
)
def test_a_model_that_reads_past_its_boundary(tmp_path: Path, how: str, reason: str, batch: int) -> None:
    options: dict[str, Any] = {"per_device_train_batch_size": batch, "loss_positions": False}
    with_it, without = (train(tmp_path, leaking(how), mode, **options) for mode in ("on", "off"))
    assert not with_it.cache_report.used
    assert reason in with_it.cache_report.reason
    assert losses(with_it) == losses(without)
    assert all(p.device.type == "cpu" and p.abs().sum() > 0 for p in with_it.model.model.layers[0].parameters())
