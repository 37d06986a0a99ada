"""`auto` with a time to spend: what is tried, what comes of it, and that a run that was stopped ends the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import frostline as fl
from frostline.core.errors import TrainingError, UserError
from frostline.cost import Workload
from frostline.plan import FixedSchedule, Plan
from frostline.records import RunRecord, read_record
from frostline.report import save_trials
from frostline.run import RunConfig, load_model, read_config, train
from frostline.run._choosing import PLANNED, SPENT, Chosen, with_planned
from frostline.run._judge import JudgedTrainer, Pause, Watch, hold_out
from frostline.run._prepare import prepare, read_data
from frostline.run._trying import judged
from frostline.tasks import Encoded
from tiny_files import write_model


def moods(path: Path, count: int) -> Path:
    rows = [
        {"text": f"Tom saw {i} {('happy', 'sad')[i % 2]} dogs", "label": ("good", "bad")[i % 2]} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(tmp_path: Path, **given: Any) -> RunConfig:
    model, task = tmp_path / "model", tmp_path / "moods.jsonl"
    if not model.exists():
        write_model(model)
        moods(task, 360)
    settings = {"model": str(model), "task": str(task), "out": str(tmp_path / "run"), "threads": 1, "bf16": False}
    # Full fine-tuning would make many passes, so that the budget is seconds, and starting a trainer a small part of it.
    settings |= {"budget": {"time": 0.5}, "num_train_epochs": 100, "per_device_train_batch_size": 4, "max_length": 24}
    return read_config(None, **(settings | given))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def delta(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "delta.safetensors")


def same(one: Path, other: Path) -> None:
    first, second = delta(one), delta(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def stop_at(monkeypatch: pytest.MonkeyPatch, callback: type, step: int, times: int = 1) -> None:
    """An interrupt after a step, the first time that a callback of this class sees its end."""
    own, left = callback.on_step_end, [times]

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        own(self, args, state, control, **others)
        if state.global_step == step and left[0] and (callback is not Pause or state.max_steps > 1000):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(callback, "on_step_end", on_step_end)


def won(record: RunRecord) -> dict[str, Any]:
    (one,) = [trial for trial in record.trials if trial["result"] == "won"]
    return one


def test_what_was_tried_and_chosen_is_in_the_record_and_in_the_figure(tmp_path: Path) -> None:
    record = train(config(tmp_path))
    assert record.chosen is not None and record.measured is not None
    winner = won(record)
    assert record.chosen["learning_rate"] == winner["learning_rate"]
    assert record.measured.steps == record.chosen["max_steps"] > winner["curve"][-1][0] == record.chosen["from_step"]
    assert record.measured.resumed_at_step == record.chosen["from_step"], "the run went on from the trial"
    assert record.measured.selection_seconds >= sum(trial["seconds"] for trial in record.trials) > 0
    assert record.chosen["lr_scheduler_type"] == "warmup_stable_decay"
    assert Plan.read(record.plan).boundary == record.chosen["boundary"]
    for trial in record.trials:
        assert trial["curve"] and trial["seconds"] > trial["curve"][-1][1] * 0.2
    assert record.config["learning_rate"] == RunConfig.model_fields["learning_rate"].default, "what was asked stays"
    text = "\n".join(record.notices)
    for line in (
        "16 rows judge the trials and the run; 308 rows train",
        "chosen: ",
        "tried: ",
        "time: ",
        "with half the memory: ",
    ):
        assert line in text
    judged_at = (
        [entry["step"] for entry in record.metrics.history if "held_out_loss" in entry] if record.metrics else []
    )
    assert judged_at[0] == winner["curve"][0][0] and len(judged_at) >= 5
    save_trials(record, tmp_path / "trials.svg")
    assert winner["option"] in (tmp_path / "trials.svg").read_text() or (tmp_path / "trials.svg").stat().st_size > 5000
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not any(name.startswith("checkpoint") for name in left) and "trials" not in left


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_trial_or_after_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, Pause, 4, times=2)
        with pytest.raises(KeyboardInterrupt):
            train(wanted)
    assert (tmp_path / "run" / "trials.json").is_file() and not (tmp_path / "run" / "run.json").is_file()
    with pytest.raises(UserError, match=r"run holds trials of a run that was stopped: use another out, or --resume"):
        train(wanted)
    with pytest.raises(UserError, match=r"^cannot resume .*run: seed was 42, now 1: use the same settings$"):
        train(wanted.model_copy(update={"seed": 1}), resume=True)
    record = train(wanted, resume=True)
    assert record.chosen is not None

    # The same trials are kept, so a second run makes none, begins at step 0, and ends the same.
    again = train(config(tmp_path, out=str(tmp_path / "again")))
    assert again.measured is not None and again.measured.resumed_at_step == 0
    assert again.trials == record.trials and again.chosen == record.chosen
    same(tmp_path / "run", tmp_path / "again")

    (kept,) = (tmp_path / "cache" / "trials").glob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    third = config(tmp_path, out=str(tmp_path / "third"), save_steps=5)
    with monkeypatch.context() as patch:
        stop_at(patch, Watch, record.chosen["max_steps"] - 3)
        with pytest.raises(KeyboardInterrupt):
            train(third)
    assert read_record(tmp_path / "third").status == "failed"
    train(third, resume=True)
    same(tmp_path / "run", tmp_path / "third")


@pytest.mark.slow
def test_judging_changes_nothing_of_the_training(tmp_path: Path) -> None:
    """The run is the training that its settings say, made without trials by the trainer alone."""
    record = train(config(tmp_path, model=str(tmp_path / "model")))
    assert record.chosen is not None
    chosen = record.chosen
    plan = Plan.read(record.plan)
    data = judged(config(tmp_path), read_data(config(tmp_path)))
    assert data.held_out is not None
    names = (*PLANNED, *SPENT)
    settings = with_planned(config(tmp_path, out=str(tmp_path / "plain")), {name: chosen[name] for name in names})
    plain = prepare(settings, replace(data, held_out=None), chosen=Chosen(FixedSchedule(plan), settings, None))
    plain.trainer.train()
    trained = dict(plain.model.named_parameters())
    for name, tensor in delta(tmp_path / "run").items():
        torch.testing.assert_close(trained[name].data, tensor, rtol=1e-4, atol=1e-5)


def test_a_loss_that_turns_ends_the_run_at_its_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0] * 20)
    trained: list[int] = []

    def judge(self: JudgedTrainer) -> float:
        held = self.state.max_steps < 1000
        trained.append(self.state.global_step) if held else None
        loss = next(losses) if not held else 1.0 + 0.5 * len(trained)
        self.log({"held_out_loss": loss})
        return loss

    monkeypatch.setattr(JudgedTrainer, "judge", judge)
    record = train(config(tmp_path))
    assert record.chosen is not None and record.measured is not None
    assert len(trained) == 3, "two above the lowest, and it stops"
    best = trained[0]
    assert record.chosen["max_steps"] == record.measured.steps == -(-best * 10 // 8)
    assert any(f"risen since step {best}" in notice for notice in record.notices)


@pytest.mark.slow
def test_a_rate_that_diverges_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = JudgedTrainer.check_loss

    def check_loss(self: JudgedTrainer, loss: float) -> None:
        own(self, math.nan if self.args.learning_rate > 2e-4 and self.args.max_steps > 1000 else loss)

    monkeypatch.setattr(JudgedTrainer, "check_loss", check_loss)
    record = train(config(tmp_path))
    assert record.chosen is not None
    results = {trial["learning_rate"]: trial["result"] for trial in record.trials}
    assert results[max(results)] == "diverged"
    assert record.chosen["learning_rate"] <= 2e-4
    save_trials(record, tmp_path / "trials.png")

    def never(self: JudgedTrainer, loss: float) -> None:
        own(self, math.nan if self.args.max_steps > 1000 else loss)

    monkeypatch.setattr(JudgedTrainer, "check_loss", never)
    with pytest.raises(TrainingError, match=r"^auto: the loss was no number at any learning rate that was tried"):
        train(config(tmp_path, seed=1, out=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lr_scheduler_type": "linear"}, r"^lr_scheduler_type: trials need a learning rate that stays the same"),
        ({"warmup_steps": 5}, r"^warmup_steps: trials need .* switch trials off with --set trials=0"),
        ({"calibrate": True}, r"^calibrate: trials time the real steps of the run"),
        ({"strategy_options": {"trials": 0.7}}, r"strategy_options of 'auto': trials"),
        ({"budget": {}, "strategy_options": {"trials": 0.1}}, r"^strategy_options.trials: .* there is none"),
        ({"budget": {"time": 0.5, "memory": "1KB"}}, r"^no plan fits memory=1KB"),
    ],
)
def test_what_trials_cannot_keep_is_refused(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        train(config(tmp_path, **given))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_what_the_user_gives_is_fixed(tmp_path: Path) -> None:
    record = train(config(tmp_path, learning_rate=3e-3))
    assert record.chosen is not None
    assert record.chosen["learning_rate"] == 3e-3 and {trial["learning_rate"] for trial in record.trials} == {3e-3}
    steps = train(config(tmp_path, max_steps=7, out=str(tmp_path / "steps")))
    assert steps.measured is not None and steps.measured.steps == 7 and steps.trials == ()
    assert "a rule chose the plan, without trials: max_steps is given, so there is no time to spend" in steps.notices
    ruled = train(config(tmp_path, strategy_options={"trials": 0}, out=str(tmp_path / "ruled")))
    assert ruled.trials == () and ruled.chosen is not None
    assert ruled.measured is not None
    assert ruled.measured.steps == pytest.approx(ruled.chosen["num_train_epochs"] * 324 / 4, abs=1)
    assert ruled.chosen["learning_rate"] != RunConfig.model_fields["learning_rate"].default


def test_held_out_rows_are_a_share_of_each_class_and_not_trained_on(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    whole = read_data(wanted)
    data = judged(wanted, whole)
    assert data.held_out is not None
    assert len(data.held_out) == len(whole.rows) // 20
    labels = [row["labels"] for row in data.held_out]
    assert abs(labels.count(0) - labels.count(1)) <= 1
    ids = [json.dumps(row) for part in (data.rows, data.held_out) for row in part]
    assert sorted(ids) == sorted(json.dumps(row) for row in whole.rows)
    assert judged(wanted, whole).held_out == data.held_out, "the same in every process"
    from_eval = hold_out(whole, 0, from_eval=True)
    assert from_eval.rows is whole.rows
    assert isinstance(from_eval.held_out, Encoded)
    assert all(row in list(whole.eval_rows) for row in from_eval.held_out)


def test_make_plan_tries_on_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = config(tmp_path)
    data = read_data(wanted)
    model = load_model(wanted.model, data.task, seed=0, dtype="auto")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [dict(row) for row in data.rows]
    work = Workload(per_device_train_batch_size=4, num_train_epochs=40)
    plan = fl.make_plan(model, "auto", data=rows, budget=fl.Budget(time=0.3), workload=work)
    assert plan.learning_rate is not None and plan.max_steps is not None and plan.max_steps > 0
    assert plan.strategy == "auto"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert Plan.read(json.loads(plan.model_dump_json())) == plan
    ruled = fl.make_plan(model, "auto", data=rows, budget=fl.Budget(time=0.3), workload=work, options={"trials": 0})
    assert ruled.max_steps is not None and ruled.max_steps > plan.max_steps * 0.5
    few = fl.make_plan(model, "auto", data=rows[:20], budget=fl.Budget(time=0.3))
    assert few.learning_rate is not None
    assert "20 rows are too few to hold some out for trials" in caplog.text
