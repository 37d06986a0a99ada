"""One run end to end on the real small models: record, resume after a real kill, clear refusals."""

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

from frostline.checkpoints import load, merge, read_card
from frostline.core.errors import TrainingError, UserError
from frostline.records import read_record
from frostline.run import RunConfig, evaluate_target, generate_target, read_config, train
from frostline.tasks import TaskOptions
from grids import slow_but


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, models_dir: Path, data_dir: Path) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))
    monkeypatch.setenv("FROSTLINE_DATA", str(data_dir))


def moods(path: Path, count: int = 40) -> Path:
    rows = [
        {"text": f"Tom saw {i} {('happy', 'sad')[i % 2]} dogs", "label": ("good", "bad")[i % 2]} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(tmp_path: Path, *overrides: str, **given: Any) -> RunConfig:
    settings = {"model": "stories260K", "task": str(moods(tmp_path / "moods.jsonl")), "out": str(tmp_path / "run")}
    defaults = [
        "max_steps=6",
        "per_device_train_batch_size=4",
        "max_length=24",
        "bf16=false",
        "learning_rate=1e-3",
        "threads=1",
    ]
    return read_config(None, [*defaults, *overrides], **(settings | given))


@pytest.mark.usefixtures("places")
def test_the_record_holds_what_was_asked_done_and_measured(tmp_path: Path) -> None:
    wanted = config(tmp_path, "strategy=bot50")
    record = train(wanted)
    folder = wanted.folder
    assert read_record(folder) == record
    assert record.status == "finished"
    assert record.config == wanted.model_dump(mode="json")
    assert [block["mode"] for block in record.plan["blocks"]] == ["frozen"] * 3 + ["full"] * 2
    assert record.model.fingerprint == read_card(folder).base_fingerprint
    assert record.data.train_rows == 36 and record.data.eval_rows == 4
    assert record.versions["torch"] == torch.__version__
    assert record.measured is not None and record.metrics is not None
    assert record.measured.steps == 6
    assert 0 < record.measured.seconds_per_step < record.measured.train_seconds
    assert record.measured.peak_memory_bytes >= 0, "a long-lived process may free more than a tiny run takes"
    assert {"accuracy", "macro_f1", "loss"} == set(record.metrics.before) == set(record.metrics.after)
    assert record.metrics.before != record.metrics.after
    trained = load_file(folder / "delta.safetensors")
    assert record.trainable_parameters == sum(tensor.numel() for tensor in trained.values())
    model = load(folder)
    assert record.total_parameters == sum(p.numel() for p in model.parameters())
    predicted = record.predicted
    assert {"flops_ratio", "run_flops_ratio", "time_ratio", "peak_memory_bytes", "memory_ratio"} <= set(predicted)
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    right = sum(answer["text"] in answer["expected"] for answer in answers)
    assert right / len(answers) == pytest.approx(record.metrics.after["accuracy"])


@pytest.mark.slow
@pytest.mark.usefixtures("places")
def test_a_run_is_evaluated_and_generated_with_again(tmp_path: Path) -> None:
    given = {"model": "base16", "task": "webnlg", "strategy": "lora"}
    wanted = config(
        tmp_path, "data.max_train_rows=16", "data.max_eval_rows=8", "generate_rows=4", "max_steps=2", **given
    )
    record = train(wanted)
    assert record.metrics is not None
    again = evaluate_target(str(wanted.folder), generate_rows=4, max_length=24, bf16=False)
    assert again.metrics == pytest.approx(record.metrics.after, rel=1e-5)
    assert {"bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match", "perplexity", "loss"} == set(again.metrics)
    [text] = generate_target(str(wanted.folder), ["Once upon a time"], max_new_tokens=8)
    assert text
    assert record.notices[0].startswith("tied embeddings")


@pytest.mark.usefixtures("places")
def test_a_run_and_its_checkpoints_are_used_as_it_was_trained(tmp_path: Path) -> None:
    wanted = config(tmp_path, "save_steps=3", "max_length=12", strategy="lora")
    record = train(wanted)
    assert record.metrics is not None
    last = wanted.folder / "checkpoint-6"
    for target in (wanted.folder, last):
        assert evaluate_target(str(target)).metrics == pytest.approx(record.metrics.after, rel=1e-5)
    other = evaluate_target(str(wanted.folder / "checkpoint-3"), max_length=24)
    assert other.metrics["loss"] != pytest.approx(record.metrics.after["loss"], rel=1e-5)
    merge(last, tmp_path / "merged")
    assert evaluate_target(
        str(tmp_path / "merged"), wanted.task, options=TaskOptions(eval_share=0.1), max_length=12, bf16=False
    ).metrics["loss"] == pytest.approx(record.metrics.after["loss"], rel=1e-4)
    with pytest.raises(UserError, match="writes no text"):
        generate_target(str(last), ["Tom"])
    with pytest.raises(UserError, match="1000 is more than the 512 positions"):
        evaluate_target(str(wanted.folder), max_length=1000)
    with pytest.raises(
        UserError, match="does not know: entailment, neutral, contradiction; the model has bad, good: use"
    ):
        evaluate_target(str(wanted.folder), "cb")
    with pytest.raises(UserError, match="an empty prompt"):
        generate_target("stories260K", [""])


@pytest.mark.usefixtures("places")
def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        wanted = config(tmp_path, f"seed={seed}", "strategy=lora", "max_steps=3", out=str(tmp_path / name))
        train(wanted)
        runs[name] = load_file(tmp_path / name / "delta.safetensors")
    assert all(torch.equal(tensor, runs["b"][name]) for name, tensor in runs["a"].items())
    assert not all(torch.equal(tensor, runs["c"][name]) for name, tensor in runs["a"].items())


@pytest.mark.usefixtures("places")
def test_a_file_named_to_be_scored_is_scored_whole(tmp_path: Path) -> None:
    wanted = config(tmp_path, "max_steps=1")
    train(wanted)
    assert evaluate_target(str(wanted.folder)).rows == 4
    other = moods(tmp_path / "other.jsonl", 20)
    assert evaluate_target(str(wanted.folder), str(other)).rows == 20
    assert evaluate_target(str(wanted.folder), str(other), options=TaskOptions(eval_share=0.5)).rows == 10


@pytest.mark.usefixtures("places")
def test_a_task_file_that_changed_since_the_run_is_said(tmp_path: Path) -> None:
    wanted = config(tmp_path, "max_steps=1", "save_steps=1")
    train(wanted)

    def said(folder: Path = wanted.folder, task: str | None = None) -> bool:
        notices = evaluate_target(str(folder), task).notices
        return any("rows it trained on may be among those it is evaluated on here" in line for line in notices)

    task = Path(wanted.task)
    other = task.with_name("same.jsonl")
    rows = task.read_text().splitlines(keepends=True)
    assert not said() and not said(task=str(task)) and not said(wanted.folder / "checkpoint-1")
    other.write_text("".join(rows))
    task.write_text("".join(rows[::-1]))
    assert said() and said(task=str(task)) and said(wanted.folder / "checkpoint-1")
    assert not said(task=str(other)), "a file that is named is evaluated as a whole"


@pytest.mark.usefixtures("places")
def test_what_is_written_joins_the_prompt() -> None:
    [text] = generate_target("stories260K", ["Once"], max_new_tokens=3)
    assert text.startswith(" upon a"), "a tokenizer that marks the beginnings of words keeps its space"


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("strategy", slow_but(["bot50"], ["bot50", "adt-l50"]))
def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path, strategy: str) -> None:
    common = ["save_steps=5", "max_steps=40", f"strategy={strategy}", "logging_steps=1"]
    whole = config(tmp_path, *common, out=str(tmp_path / "whole"))
    train(whole)
    killed = config(tmp_path, *common, out=str(tmp_path / "killed"))
    arguments = [
        *common,
        "per_device_train_batch_size=4",
        "max_length=24",
        "bf16=false",
        "learning_rate=1e-3",
        "threads=1",
    ]
    command = [sys.executable, "-m", "frostline", "train", *arguments]
    command += ["--model", killed.model, "--task", killed.task, "--out", str(killed.folder)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed.folder / "checkpoint-10").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_record(killed.folder).status == "running"
    record = train(killed, resume=True)
    assert record.status == "finished"
    assert record.measured is not None and 10 <= record.measured.resumed_at_step < 40
    expected, got = (load_file(run.folder / "delta.safetensors") for run in (whole, killed))
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    first, second = read_record(whole.folder).metrics, record.metrics
    assert first is not None and second is not None
    assert (first.before, first.after) == (second.before, second.after)


@pytest.mark.usefixtures("places")
def test_what_a_run_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        train(config(tmp_path, model="./nowhere"))
    with pytest.raises(UserError, match="did you mean 'bot50'"):
        train(config(tmp_path, strategy="bott50"))
    with pytest.raises(UserError, match="600 is more than the 512 positions"):
        train(config(tmp_path, "max_length=600"))
    with pytest.raises(UserError, match="use a decoder"):
        train(config(tmp_path, model="all-MiniLM-L6-v2", task="webnlg"))
    with pytest.raises(UserError, match="no such folder"):
        train(config(tmp_path, model="/nowhere/stories260K"))
    with pytest.raises(UserError, match="seed: it should be less than 4294967296"):
        config(tmp_path, "seed=4294967296")
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "good"}\n' * 20)
    with pytest.raises(UserError, match="all rows have the label 'good'"):
        train(config(tmp_path, task=str(tmp_path / "one.jsonl")))
    (tmp_path / "plain.jsonl").write_text("".join(f'{{"text": "a dog {i}"}}\n' for i in range(20)))
    with pytest.raises(UserError, match="max_length: 1 tokens leave nothing to predict"):
        train(config(tmp_path, "max_length=1", task=str(tmp_path / "plain.jsonl")))
    assert not (tmp_path / "run").exists(), "nothing is written before the input is known to be right"
    train(config(tmp_path, "max_steps=1"))
    with pytest.raises(UserError, match=r"already holds a finished run: use another out$"):
        train(config(tmp_path, "max_steps=1"))
    with pytest.raises(UserError, match="is finished"):
        train(config(tmp_path, "max_steps=1"), resume=True)
    with pytest.raises(UserError, match="no run to resume"):
        train(config(tmp_path, out=str(tmp_path / "new")), resume=True)


@pytest.mark.usefixtures("places")
def test_a_loss_that_is_no_number_is_recorded_and_resume_wants_the_same_config(tmp_path: Path) -> None:
    wanted = config(tmp_path, "learning_rate=1e30", "max_grad_norm=0", "save_steps=1", "max_steps=20", "strategy=all")
    with pytest.raises(TrainingError, match="the loss is"):
        train(wanted)
    record = read_record(wanted.folder)
    assert record.status == "failed" and record.error is not None and record.error.startswith("the loss is")
    assert (wanted.folder / "checkpoint-1" / "trainer_state.json").is_file()
    with pytest.raises(UserError, match=r"learning_rate was 1e\+30, now 0.001"):
        train(config(tmp_path, "save_steps=1", "max_steps=20", "strategy=all", "max_grad_norm=0"), resume=True)
