"""The workload that a run's cost is predicted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.cost import Workload
from frostline.run import _work
from frostline.run._config import read_config
from frostline.run._prepare import Prepared, prepare, read_data
from tiny_files import write_model, write_task


def prepared(folder: Path, task: Path) -> Prepared:
    settings = [
        "per_device_train_batch_size=2",
        "max_length=16",
        "bf16=false",
        "max_steps=4",
        "strategy=bot50",
        f"out={folder / 'run'}",
    ]
    config = read_config(None, settings, model=str(write_model(folder / "model")), task=str(task))
    return prepare(config, read_data(config))


def workload_of(run: Prepared) -> Workload:
    applied = run.trainer.applied
    return _work.workload_of(run.config, run.data, applied.anatomy, applied.config, applied.base_dtype)


def test_labels_are_a_share_of_the_padded_positions(tmp_path: Path) -> None:
    rows = [{"prompt": "the sun is", "completion": "warm"}, {"prompt": "the day", "completion": "is cached"}]
    task = tmp_path / "days.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows * 10))
    run = prepared(tmp_path, task)
    labels = [sum(label != -100 for label in row["labels"][1:]) for row in run.data.rows]
    workload = workload_of(run)
    assert workload.label_share == pytest.approx(sum(labels) / len(labels) / workload.length)
    assert 0 < workload.label_share < 0.6


def test_a_classifier_has_none(tmp_path: Path) -> None:
    run = prepared(tmp_path, write_task(tmp_path / "days"))
    plain = workload_of(run)
    assert plain == plain.plain and plain.label_share == 1
    assert plain.num_train_epochs == 4 * 2 / len(run.data.rows)
