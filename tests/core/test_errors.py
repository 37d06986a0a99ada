"""The classes of errors, and the did-you-mean line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from architectures import tiny
from frostline.core.errors import FrostlineError, TrainingError, UserError, unknown_name

WRONG_INPUT = [fl.CheckpointError, fl.ConfigError, fl.DataError, fl.PlanError, fl.UnsupportedModel]


def test_only_the_users_faults_are_user_errors() -> None:
    assert issubclass(UserError, FrostlineError)
    assert issubclass(TrainingError, FrostlineError)
    assert not issubclass(TrainingError, UserError)
    assert all(kind.__bases__ == (UserError,) for kind in WRONG_INPUT)


def test_letters_in_another_order_are_the_likeliest_slip() -> None:
    assert "did you mean 'bot50'?" in str(unknown_name("strategy", "bto50", ["top50", "bot50", "adt-l50"]))


def config(folder: Path, task: str) -> fl.RunConfig:
    return fl.RunConfig(model=str(folder), task=task, out=str(folder / "run"))


FAULTS: list[tuple[type[UserError], Callable[[Path], Any]]] = [
    (fl.PlanError, lambda folder: fl.load_plan(folder / "none.yaml")),
    (fl.PlanError, lambda folder: fl.load_plan(folder / "broken.yaml")),
    (fl.PlanError, lambda folder: fl.apply(fl.Plan(blocks=["full"]), tiny("llama"))),
    (fl.PlanError, lambda folder: fl.make_plan(tiny("llama"), "adt-l50")),
    (fl.ConfigError, lambda folder: fl.make_plan(tiny("llama"), "bott50")),
    (fl.ConfigError, lambda folder: fl.make_plan(tiny("llama"), "lora", options={"rank": 2})),
    (fl.ConfigError, lambda folder: fl.train(config(folder, "rta"))),
    (fl.DataError, lambda folder: fl.train(config(folder, str(folder / "rows.jsonl")))),
    (fl.DataError, lambda folder: fl.make_plan(tiny("llama"), "semantic", data=[])),
    (fl.UnsupportedModel, lambda folder: fl.make_plan(torch.nn.Linear(2, 2), "bot50")),
    (fl.CheckpointError, lambda folder: fl.load(folder)),
]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_each_fault_is_of_its_kind(tmp_path: Path, kind: type[UserError], fault: Callable[[Path], Any]) -> None:
    (tmp_path / "broken.yaml").write_text("blocks: [")
    (tmp_path / "rows.jsonl").write_text("{}\n[]\n")
    with pytest.raises(UserError) as told:
        fault(tmp_path)
    assert type(told.value) is kind


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rta", "unknown task 'rta': did you mean 'rte'? known: cb, rte, webnlg"),
        ("webnl", "unknown task 'webnl': did you mean 'webnlg'? known: cb, rte, webnlg"),
        ("RTE", "unknown task 'RTE': did you mean 'rte'? known: cb, rte, webnlg"),
        ("zzz", "unknown task 'zzz': known: cb, rte, webnlg"),
        ("", "unknown task '': known: cb, rte, webnlg"),
        ("r\nte", r"unknown task 'r\nte': did you mean 'rte'? known: cb, rte, webnlg"),
    ],
)
def test_unknown_name(name: str, line: str) -> None:
    error = unknown_name("task", name, ["webnlg", "rte", "cb"])
    assert isinstance(error, UserError)
    assert str(error) == line
