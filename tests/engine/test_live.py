"""What the loggers of `report_to` get, beside the formulas and the optimizer's own groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

import cache_cases
import frostline as fl
from architectures import tiny
from cache_cases import collate, rows_for
from frostline.cost import Workload, flops_ratio, has_dropout
from frostline.plan import rate_of
from frostline.run import make_schedule, read_config, train
from tiny_files import write_model, write_task

RATE, STEPS, BLOCKS = 1e-2, 8, 4
NAMES = {
    *(f"lr/block_{block}" for block in range(BLOCKS)),
    "lr/embeddings",
    "lr/final_norm",
    "lr/head",
    "trains/blocks",
    "trains/boundary",
    "trains/parameters",
    "cache/used",
    "cache/rows",
    "cache/batches_computed",
    "cost/caching_share",
    "cost/step_flops_ratio",
}


class Writer:
    """Stands for TensorBoard's writer: value by name and step."""

    def __init__(self) -> None:
        self.scalars: dict[str, dict[int, float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name.removeprefix("train/"), {})[step] = value

    def add_text(self, *_: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Groups(TrainerCallback):
    """The learning rate of every parameter that trains in a step, by the optimizer's groups, when it steps."""

    def __init__(self) -> None:
        self.rates: list[dict[int, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.rates.append({id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "learning_rate": RATE,
        "optim": TrainingArguments.default_optim,
        "lr_scheduler_type": "linear",
        "remove_unused_columns": False,
    }
    return cache_cases.arguments(folder, **given | options)


def trained(
    folder: Path, how: str, name: str, moves: bool = False, architecture: str = "llama", **options: Any
) -> tuple[Any, dict[str, dict[int, float]], Groups]:
    """A training by `fl.Trainer` or `fl.attach` under the strategy `name`, and what its logger got."""
    model = tiny(architecture, dropout=0.0)
    writer, groups = Writer(), Groups()
    common: dict[str, Any] = {
        "args": arguments(folder),
        "train_dataset": rows_for(model, 12),
        "data_collator": collate,
        "callbacks": [TensorBoardCallback(writer), groups],
    }
    if moves:
        what: dict[str, Any] = {"schedule": make_schedule(model, name, steps=STEPS, options=options)}
    else:
        what = {"plan": fl.make_plan(model, name)}
    if how == "Trainer":
        made: Any = fl.Trainer(model, **common, **what)
    else:
        made = fl.attach(transformers.Trainer(model, **common), **what)
    made.train()
    return made, writer.scalars, groups


def highest_by_block(made: Any, rates: dict[int, float]) -> list[float]:
    """The highest learning rate of each block's parameters, by the names of the model."""
    found = []
    for block in range(BLOCKS):
        own = [
            p for name, p in made.model.named_parameters() if f".layers.{block}." in name or f".layer.{block}." in name
        ]
        found.append(max((rates.get(id(p), 0.0) for p in own), default=0.0))
    return found


@pytest.mark.parametrize("how", ["Trainer", "attach"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_fixed_plan_s_scalars_are_those_of_the_formulas(tmp_path: Path, how: str, architecture: str) -> None:
    made, scalars, groups = trained(tmp_path, how, "bot50", architecture=architecture)
    assert {name for name in scalars if "/" in name} == NAMES
    model = made.model
    for step in range(1, STEPS + 1):
        rate = RATE * (1 - (step - 1) / STEPS)  # linear, no warm-up: of the step that was made, not of the next one
        found = [scalars[f"lr/block_{block}"][step] for block in range(BLOCKS)]
        assert found == pytest.approx([0, 0, rate, rate]), step
        assert found == pytest.approx(highest_by_block(made, groups.rates[step - 1]))
        assert scalars["lr/embeddings"][step] == 0 and scalars["lr/head"][step] == pytest.approx(rate)
        assert scalars["learning_rate"][step] == pytest.approx(rate), "transformers' own"
    assert set(scalars["trains/blocks"].values()) == {2} and set(scalars["trains/boundary"].values()) == {2}
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert set(scalars["trains/parameters"].values()) == {parameters}
    assert set(scalars["cache/used"].values()) == {int(made.cache_report.used)} == {1}
    assert scalars["cache/rows"][STEPS] == 12
    assert all(0 <= share < 1 for share in scalars["cost/caching_share"].values())
    lengths = [4 + i % 6 for i in range(12)]
    work = Workload(
        length=round(sum(lengths) / 12),
        per_device_train_batch_size=4,
        dropout=has_dropout(model.config),
        activation_cache=True,
    )
    applied = made.applied if how == "Trainer" else model._frostline
    expected = flops_ratio(applied.plan, applied.anatomy, work)
    assert scalars["cost/step_flops_ratio"][STEPS] == pytest.approx(expected) and 0 < expected < 0.7
    assert not {name for entry in made.state.log_history for name in entry if "/" in name}, "the log stays as it was"


@pytest.mark.parametrize(
    ("how", "name", "options"),
    [
        ("Trainer", "lisa", {"every": 3}),
        ("attach", "lisa", {"every": 3}),
        ("Trainer", "gradual", {"groups": 4}),
        ("attach", "gradual", {"groups": 4}),
        ("Trainer", "freezeout", {"start": 0.5}),
    ],
)
def test_a_schedule_s_scalars_change_with_its_plan(
    tmp_path: Path, how: str, name: str, options: dict[str, Any]
) -> None:
    made, scalars, groups = trained(tmp_path, how, name, moves=True, **options)
    if how == "Trainer":
        plans = [(0, made.applied.first), *((change.step, change.plan) for change in made.changes)]
        shown = {step: [plan for begins, plan in plans if begins < step][-1] for step in range(1, STEPS + 1)}
        trains = {step: [block.mode != "frozen" for block in plan.blocks] for step, plan in shown.items()}
        assert {step: int(value) for step, value in scalars["trains/boundary"].items()} == {
            step: plan.boundary for step, plan in shown.items()
        }
    else:  # by the optimizer's groups
        trains = {step: [rate > 0 for rate in highest_by_block(made, groups.rates[step - 1])] for step in range(1, 9)}
    assert len({tuple(row) for row in trains.values()}) > 1, "the plan has changed"
    for step, row in trains.items():
        assert scalars["trains/blocks"][step] == sum(row)
        found = [scalars[f"lr/block_{block}"][step] for block in range(BLOCKS)]
        assert found == pytest.approx(highest_by_block(made, groups.rates[step - 1]))
    if name == "freezeout":
        rate = rate_of(made.schedule)
        assert rate is not None
        for step in range(1, STEPS + 1):
            expected = [RATE * rate(step - 1, block) * trains[step][block] for block in range(BLOCKS)]
            assert [scalars[f"lr/block_{block}"][step] for block in range(BLOCKS)] == pytest.approx(expected)


def test_the_share_of_operations_follows_the_plan(tmp_path: Path) -> None:
    made, scalars, _ = trained(tmp_path, "Trainer", "gradual", moves=True, groups=4)
    shares = scalars["cost/step_flops_ratio"]
    assert shares[1] < shares[STEPS], "gradual unfreezing makes steps dearer"
    work = {"length": 6, "per_device_train_batch_size": 4, "dropout": has_dropout(made.model.config)}
    plan, anatomy = made.applied.plan, made.applied.anatomy
    used = bool(scalars["cache/used"][STEPS])
    assert shares[STEPS] == pytest.approx(flops_ratio(plan, anatomy, Workload(**work, activation_cache=used)))


def test_rows_without_lengths_have_no_share_and_no_logger_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frostline.engine import _live

    class Rows(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows_for(model, 12) * 9)

    model, writer = tiny("llama", dropout=0.0), Writer()
    made = fl.Trainer(
        model,
        arguments(tmp_path, max_steps=2),
        plan=fl.make_plan(model, "bot50"),
        train_dataset=Rows(),
        data_collator=collate,
        callbacks=[TensorBoardCallback(writer)],
    )
    made.train()
    assert {name for name in writer.scalars if "/" in name} == NAMES - {"cost/step_flops_ratio"}

    def fails(*_: Any) -> None:
        raise AssertionError("nobody reads it")

    monkeypatch.setattr(_live.LiveScalars, "_scalars", fails)
    model = tiny("llama", dropout=0.0)
    fl.Trainer(
        model,
        arguments(tmp_path, max_steps=2),
        plan=fl.make_plan(model, "bot50"),
        train_dataset=rows_for(model, 12),
        data_collator=collate,
    ).train()


@pytest.mark.slow
def test_a_split_training_has_what_is_known_in_this_process(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {"model": str(write_model(tmp_path / "tiny")), "task": str(write_task(tmp_path / "days"))}
    given |= {"out": str(tmp_path / "run"), "strategy": "splitlora", "optim": "sgd"}
    train(read_config(None, **given, report_to=["tensorboard"], max_steps=4, logging_steps=2, max_length=16))
    (folder,) = {path.parent for path in (tmp_path / "run" / "runs").rglob("events.*")}
    tags = {tag.removeprefix("train/") for tag in EventAccumulator(str(folder)).Reload().Tags()["scalars"]}
    assert tags >= {name for name in NAMES if not name.startswith("lr/")}
    assert not [tag for tag in tags if tag.startswith("lr/")]


@pytest.mark.parametrize("strategy", ["bot50", "freezeout"])
def test_a_run_s_event_file_has_them(tmp_path: Path, strategy: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = read_config(
        None,
        model=str(write_model(tmp_path / "tiny")),
        task=str(write_task(tmp_path / "days")),
        strategy=strategy,
        out=str(tmp_path / "run"),
        report_to=["tensorboard"],
        max_steps=6,
        logging_steps=2,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        per_device_train_batch_size=4,
        max_length=16,
    )
    record = train(config)
    (folder,) = {path.parent for path in (tmp_path / "run" / "runs").rglob("events.*")}
    events = EventAccumulator(str(folder)).Reload()
    tags = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert tags >= NAMES and "loss" in tags
    top = {event.step: event.value for event in events.Scalars(f"train/lr/block_{BLOCKS - 1}")}
    assert list(top) == [2, 4, 6]
    if strategy == "bot50":
        assert top[4] == pytest.approx(RATE * (1 - 3 / 6))
        assert {event.value for event in events.Scalars("train/lr/block_0")} == {0.0}
        assert math.isclose(events.Scalars("train/trains/parameters")[0].value, record.trainable_parameters)
    assert record.metrics is not None
    assert not [name for entry in record.metrics.history for name in entry if "/" in name]
