"""The runs of a table: records, each with the label of its row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frostline.core.documents import parse_yaml
from frostline.core.errors import CheckpointError
from frostline.core.files import read_text
from frostline.records import RunRecord, find_records

STUDY_FILE = "study.yaml"

NOT_COMPARED = frozenset({"seed", "out", "logging_steps", "save_steps", "save_total_limit", "report_to"})
"""Settings in which the runs of one row may differ, since they change neither what is learned nor the cost."""


@dataclass(frozen=True)
class Run:
    """A record, its folder, and the label of its row: the strategy, or the name that a study gives it."""

    label: str
    record: RunRecord
    folder: Path

    @property
    def cell(self) -> tuple[str, str, str]:
        """Model, task and where the task's rows came from: what a row must share with its baseline."""
        return (self.record.model.name, self.record.data.task, self.record.data.source)


def collect(folder: Path) -> list[Run]:
    """Every run below `folder`, in the order in which they were started.

    Raises `UserError` when there is no such folder, no run in it, or a record that cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no such folder: {folder}: use a run's folder, or a folder that holds runs")
    found = find_records(folder)
    if not found:
        raise CheckpointError(f"no run below {folder}: use a folder that `frostline train` or `frostline study` wrote")
    found.sort(key=lambda pair: pair[1].started)
    return [Run(_label(path, record), record, path) for path, record in found]


def study_baseline(folder: Path) -> str | None:
    """The baseline that the study in `folder` names; `all` when it names none or there is no study."""
    path = folder / STUDY_FILE
    if not path.is_file():
        return "all"
    study = parse_yaml(read_text(path, "study file", CheckpointError), str(path), CheckpointError)
    baseline = study.get("baseline", "all") if isinstance(study, dict) else study
    if not isinstance(study, dict) or not isinstance(baseline, str | None):
        raise CheckpointError(f"{path}: it is no study: its baseline must be the label of a row: remove the file")
    return baseline


def named(runs: Iterable[Run]) -> list[Run]:
    """The same runs, where runs of one label that were set up differently have labels that say how.

    A mean over runs with two learning rates would be a mean of two methods: they become two rows,
    `lora (learning_rate=0.0001)` and `lora (learning_rate=0.001)`.
    """
    runs = list(runs)
    settings = [_settings(run.record.config) for run in runs]
    labelled = []
    for run, own in zip(runs, settings, strict=True):
        others = [
            setting
            for other, setting in zip(runs, settings, strict=True)
            if (other.label, *other.cell) == (run.label, *run.cell)
        ]
        differing = sorted({key for setting in others for key in setting | own if setting.get(key) != own.get(key)})
        shown = ", ".join(f"{key}={own.get(key)}" for key in differing)
        labelled.append(replace(run, label=f"{run.label} ({shown})") if shown else run)
    return labelled


def _label(folder: Path, record: RunRecord) -> str:
    # A study keeps a run in <model>/<task>/<label>/seed<seed>.
    if folder.name == f"seed{record.seed}":
        return folder.parent.name
    return str(record.config.get("strategy") or record.plan.get("strategy"))


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The configuration as dotted key -> text, without what may differ within a row."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{prefix}{key}.")
        elif prefix or key not in NOT_COMPARED:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
