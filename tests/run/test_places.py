"""A run is used from any working folder, and after it moved together with its model and its data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import frostline
from frostline.checkpoints import load, merge
from frostline.core.errors import CheckpointError
from frostline.core.places import found_places, places_of
from frostline.records import read_record
from frostline.run import RunConfig, evaluate_target, train
from tiny_files import write_model, write_task

HOME = "Läufe & Modelle"
MODEL, TASK, RUN = "mein Modell", "Wärme und Kälte", "runs/erster Lauf"


def settings(**options: Any) -> RunConfig:
    given = {"model": MODEL, "task": TASK, "strategy": "bot50", "out": RUN, "max_steps": 4, "save_steps": 2}
    return RunConfig(**{**given, "max_length": 16, "bf16": False, "learning_rate": 1e-3, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a task and a run that was trained there by relative paths."""
    home = tmp_path_factory.mktemp("places") / HOME
    write_model(home / MODEL)
    write_task(home / TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train(settings())
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it elsewhere; the working folder is a third one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copytree(made, tmp_path / "moved" / HOME)
    return tmp_path / "moved" / HOME


def loss_after(run: Path) -> float:
    record = read_record(run)
    assert record.metrics is not None
    return record.metrics.after["loss"]


def test_from_another_working_folder(made: Path, home: Path, tmp_path: Path) -> None:
    run = made / RUN
    assert evaluate_target(str(run)).metrics["loss"] == pytest.approx(loss_after(run), rel=1e-5)
    relative = Path("..", *[".."] * 20, *run.parts[1:])
    assert evaluate_target(str(relative)).metrics["loss"] == pytest.approx(loss_after(run), rel=1e-5)
    merge(run, tmp_path / "out")
    assert evaluate_target(str(tmp_path / "out"), str(made / TASK), max_length=16, bf16=False).rows == 8


def test_moved_together_and_the_old_place_gone(home: Path, tmp_path: Path) -> None:
    """Nothing is left of the absolute paths: all is found from the run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shutil.rmtree(RUN)
        train(settings())
    there = tmp_path / "drittens" / "tiefer"
    there.mkdir(parents=True)
    home.rename(there / "neu")
    run = there / "neu" / RUN
    assert evaluate_target(str(run)).metrics["loss"] == pytest.approx(loss_after(run), rel=1e-5)
    for folder in (run, run / "checkpoint-2"):
        assert load(folder).config.id2label == {0: "no", 1: "yes"}
    ended = frostline("merge", run, "--out", tmp_path / "out mit Ü")
    assert ended.status == 0, ended.err
    (run / "run.json").unlink()  # a delta alone finds its base too
    assert load(run).config.num_labels == 2


def test_the_fingerprint_decides_between_the_places(home: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shutil.rmtree(RUN)
        train(settings())
    other = tmp_path / "anders"
    home.rename(other)
    write_model(home / MODEL, "qwen2")  # another model at the old absolute path
    assert evaluate_target(str(other / RUN)).metrics["loss"] == pytest.approx(loss_after(other / RUN), rel=1e-5)
    shutil.rmtree(other / MODEL)
    with pytest.raises(
        CheckpointError,
        match=r"the base of .*tensor model\.layers\.0\.self_attn\.k_proj\.bias and 11 more are in .*use base to say",
    ):
        load(other / RUN)
    shutil.rmtree(home)
    with pytest.raises(CheckpointError, match=r"the base of .*no such folder.*use base to say where it is"):
        load(other / RUN)


def test_base_says_where_the_model_is(home: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shutil.rmtree(RUN)
        train(settings())
    (home / MODEL).rename(tmp_path / "base")
    lost = frostline("evaluate", home / RUN)
    assert lost.status == 2 and "use base to say where it is" in lost.error
    base = ("--base", tmp_path / "base")
    ended = frostline("evaluate", home / RUN, *base, "--json")
    assert ended.document["metrics"]["loss"] == pytest.approx(loss_after(home / RUN), rel=1e-5)
    assert frostline("merge", home / RUN, *base, "--out", tmp_path / "out").status == 0
    wrong = write_model(tmp_path / "wrong", "qwen2")
    refused = frostline("evaluate", home / RUN, "--base", wrong)
    assert refused.status == 2


def test_generate_from_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    (home / "texte.jsonl").write_text('{"text": "the warm day is w1"}\n' * 4)
    train(settings(task="texte.jsonl", out="runs/text", data={"eval": "texte.jsonl"}))
    monkeypatch.chdir(tmp_path)
    ended = frostline("generate", home / "runs/text", "--prompt", "the warm", "--max-new-tokens", "2", "--json")
    assert ended.status == 0, ended.err
    assert evaluate_target(str(home / "runs/text")).rows == 4, "the evaluation file is found too"


def test_resumed_from_another_folder_with_other_names_of_the_same_files(home: Path) -> None:
    whole = load(home / RUN).state_dict()
    shutil.rmtree(home / RUN / "checkpoint-4")
    record = (home / RUN / "run.json").read_text()
    (home / RUN / "run.json").write_text(record.replace('"status": "finished"', '"status": "failed"'))
    again = settings(model=str(home / MODEL), task=f"../moved/{HOME}/{TASK}", out=str(home / RUN))
    # The record's absolute paths are those of the first place, which still is there: the same content, another file.
    with pytest.raises(CheckpointError, match=r"model was 'mein Modell', now .*: use the same settings"):
        train(again, resume=True)
    text = (home / RUN / "run.json").read_text()
    for old in read_record(home / RUN).places.values():
        text = text.replace(f'"{old[0]}"', '"/no such place"')
    (home / RUN / "run.json").write_text(text)
    resumed = train(again, resume=True)
    assert resumed.measured is not None and resumed.measured.resumed_at_step == 2
    for name, tensor in load(home / RUN).state_dict().items():
        assert tensor.equal(whole[name]), name


def test_the_base_folder_is_only_read(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(home)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (home / MODEL).iterdir()}
    for path in (*(home / MODEL).iterdir(), home / MODEL):
        path.chmod(0o555 if path.is_dir() else 0o444)
    train(settings(out="runs/nur lesen"))
    evaluate_target("runs/nur lesen")
    merge("runs/nur lesen", tmp_path / "out")
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (home / MODEL).iterdir()} == before
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o200, "what is written is not read-only"
    (home / MODEL).chmod(0o755)


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    assert places_of("absent", run) == places_of("", run) == ()
    assert places_of("link", run) == (str(tmp_path / "link"), "../../link")
    assert found_places(("/absent", "../../link"), run) == [str(tmp_path / "link")]
    assert found_places((str(tmp_path / "link"), "../../link"), Path("runs/one")) == [str(tmp_path / "link")]
