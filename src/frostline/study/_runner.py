"""Run a study: skip finished runs, resume interrupted ones, and continue when a run fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Console

from frostline.core.errors import CheckpointError
from frostline.core.files import private, write_text
from frostline.core.locks import own_folder
from frostline.records import RECORD_FILE, RunRecord, read_record
from frostline.run import RunConfig
from frostline.study._config import StudyConfig
from frostline.study._grid import Cell, cells
from frostline.study.lifeline import Child

STUDY_FILE = "study.yaml"
CONFIG_FILE = "config.yaml"
MAY_DIFFER = ("out", "threads")
ENDING = 30.0
"""Seconds to wait for a run of a study that was killed a moment ago: it notices, and ends."""


@dataclass(frozen=True)
class Result:
    """The result of one run: its record, or why there is none."""

    cell: Cell
    record: RunRecord | None
    error: str | None = None


def run_study(study: StudyConfig, out: Path, console: Console | None = None) -> list[Result]:
    """Run the study's runs one after another, each in a new process, and return the result of each.

    A finished run is skipped, and an interrupted one is resumed from its last checkpoint. One that fails does not stop
    the others. A study that was killed at any point continues when it is called again.

    Args:
        study: the study.
        out: the folder that holds its runs.
        console: where progress is shown; None: nowhere.

    Raises `UserError` before anything runs: for an unknown strategy or setting, where `out` holds one of the runs with
    other settings, and where another process works in `out`.
    """
    grid = cells(study, out)
    with private(), own_folder(out):
        return _run_cells(study, grid, out, console or Console(stderr=True, quiet=True))


def _run_cells(study: StudyConfig, grid: Sequence[Cell], out: Path, console: Console) -> list[Result]:
    recorded = [_recorded(cell) for cell in grid]
    done = sum(map(_is_finished, recorded))
    console.print(f"study in {out}: {done} of {len(grid)} runs recorded already", soft_wrap=True)
    write_text(out / STUDY_FILE, study.to_yaml())
    return [
        _settle(cell, record, f"[{number}/{len(grid)}]", console)
        for number, (cell, record) in enumerate(zip(grid, recorded, strict=True), start=1)
    ]


def _settle(cell: Cell, record: RunRecord | None, position: str, console: Console) -> Result:
    def say(text: str, style: str = "") -> None:
        console.print(f"{position} {cell.folder}: {text}", style=style, soft_wrap=True)

    config = cell.config.model_dump(mode="json", exclude_unset=True)
    try:
        if not _is_finished(record):
            with own_folder(cell.folder, ENDING):
                record = _recorded(cell)  # what became of it in the meantime
                write_text(cell.folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
    except CheckpointError as reason:
        say(f"failed: {reason}", style="red")
        return Result(cell, None, str(reason))
    if _is_finished(record):
        say("already recorded")
        return Result(cell, record)
    say("training" if record is None else "resuming a run that was interrupted")
    error = Child(_command(cell.folder / CONFIG_FILE, resume=record is not None)).wait()
    if error is not None:
        say(f"failed: {error}", style="red")
        return Result(cell, None, error)
    return Result(cell, read_record(cell.folder))


def _command(config: Path, *, resume: bool) -> Sequence[str]:
    # -P: modules that happen to be in the working folder are not imported.
    return [sys.executable, "-P", "-m", "frostline", "train", str(config), *(["--resume"] if resume else [])]


def _is_finished(record: RunRecord | None) -> bool:
    return record is not None and record.status == "finished"


def _recorded(cell: Cell) -> RunRecord | None:
    """The run's record, if there is one. Raises `CheckpointError` when it has other settings."""
    if not (cell.folder / RECORD_FILE).is_file():
        return None
    record = read_record(cell.folder)
    try:
        found = RunConfig.model_validate(record.config).model_dump(mode="json")
    except ValidationError:
        found = record.config
    wanted = cell.config.model_dump(mode="json")
    for key, value in wanted.items():
        if key not in MAY_DIFFER and found.get(key) != value:
            raise CheckpointError(
                f"{cell.folder} holds a {record.status} run with {key}={found.get(key)!r}, and the study asks for "
                f"{value!r}: remove that folder, or use another --out"
            )
    return record
