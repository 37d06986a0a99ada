"""The runs of a table: records, each with the label of its row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from frostline.core.documents import parse_yaml
from frostline.core.errors import CheckpointError, UserError
from frostline.core.files import read_text
from frostline.core.locks import is_held
from frostline.records import RECORD_FILE, RunRecord, read_record

STUDY_FILE = "study.yaml"
GRID = ("models", "tasks", "strategies", "seeds")

State = Literal["finished", "running", "interrupted", "failed"]

NOT_COMPARED = frozenset({"seed", "out", "logging_steps", "save_steps", "save_total_limit", "report_to"})
"""Settings in which the runs of one row may differ, since they change neither what is learned nor the cost."""


@dataclass(frozen=True)
class Run:
    """A record, its folder, and the label of its row: the strategy, or the name that a study gives it.

    `study` is the folder of its study, where that is one of several below the folder that was looked through.
    """

    label: str
    record: RunRecord
    folder: Path
    study: Path | None = None

    @property
    def cell(self) -> tuple[Path | None, str, str, str]:
        """Study, model, task and where the task's rows came from: what a row must share with its baseline."""
        return (self.study, self.record.model.name, self.record.data.task, self.record.data.source)

    @property
    def state(self) -> State:
        """What became of it. A run that says that it runs, and in whose folder nobody works, was interrupted."""
        status = self.record.status
        return "interrupted" if status == "running" and not is_held(self.folder) else status


@dataclass(frozen=True)
class Unreadable:
    """A record that does not count, being damaged, of another version or a copy: where it is, and what is wrong."""

    folder: Path
    error: str


class Found(NamedTuple):
    """The runs below a folder, in the order in which they were started, and the records that could not be read."""

    runs: list[Run]
    unreadable: tuple[Unreadable, ...]


def collect(folder: Path) -> Found:
    """Every run below `folder`.

    Raises `UserError` when there is no such folder, no run in it, or no record that can be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no such folder: {folder}: use a run's folder, or a folder that holds runs")
    found = look(folder)
    if not found.runs and found.unreadable:
        raise CheckpointError(found.unreadable[0].error)
    if not found.runs:
        raise CheckpointError(f"no run below {folder}: use a folder that `frostline train` or `frostline study` wrote")
    return found


def look(folder: Path) -> Found:
    """Every run below `folder`, if there is any."""
    runs, unreadable = list[Run](), list[Unreadable]()
    for path in sorted(folder.rglob(RECORD_FILE)):
        try:
            record = read_record(path.parent)
        except UserError as error:
            unreadable.append(Unreadable(path.parent, str(error)))
            continue
        if same := next((run for run in runs if run.record == record), None):
            unreadable.append(Unreadable(path.parent, f"{path}: the same run as {same.folder}: it counts once"))
        else:
            runs.append(Run(_label(path.parent, record), record, path.parent, _study_within(folder, path)))
    runs.sort(key=lambda run: run.record.started)
    return Found(runs, tuple(unreadable))


def _study_within(folder: Path, place: Path) -> Path | None:
    """The nearest folder of a study above a place, below `folder`. Two studies have settings of their own."""
    for above in place.parents:
        if above == folder:
            return None
        if (above / STUDY_FILE).is_file():
            return above
    return None


def study_baseline(folder: Path) -> str | None:
    """The baseline that the study in `folder` names; `all` when it names none or there is no study."""
    study = _study(folder)
    baseline = study.get("baseline", "all")
    if not isinstance(baseline, str | None):
        raise _no_study(folder)
    return baseline


def planned_runs(folder: Path) -> int | None:
    """How many runs the study in `folder` has when it is done; None when there is no study."""
    study = _study(folder)
    models, tasks, strategies, seeds = (study.get(key, [0]) for key in GRID)
    if not study or not all(isinstance(part, list) for part in (models, tasks, strategies, seeds)):
        return None
    own = [entry.get("seeds") if isinstance(entry, dict) else None for entry in strategies]
    return len(models) * len(tasks) * sum(len(some if isinstance(some, list) else seeds) for some in own)


def _study(folder: Path) -> dict[str, Any]:
    path = folder / STUDY_FILE
    if not path.is_file():
        return {}
    study = parse_yaml(read_text(path, "study file", CheckpointError), str(path), CheckpointError)
    if not isinstance(study, dict):
        raise _no_study(folder)
    return study


def _no_study(folder: Path) -> CheckpointError:
    place = folder / STUDY_FILE
    return CheckpointError(f"{place}: it is no study: its baseline must be the label of a row: remove the file")


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
