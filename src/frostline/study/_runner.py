"""Run a study: skip finished runs, resume interrupted ones, and continue when a run fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Console

from frostline.core.errors import CheckpointError, FrostlineError, first_line
from frostline.core.files import private, write_text
from frostline.core.locks import own_folder
from frostline.core.sizes import duration_text
from frostline.records import RECORD_FILE, RunRecord, read_record
from frostline.report import mean_text
from frostline.run import TRIALS_FILE, RunConfig
from frostline.study._config import StudyConfig
from frostline.study._grid import Cell, cells
from frostline.study._progress import Progress
from frostline.study._report import write_cards, write_page
from frostline.study._result import Result
from frostline.study.lifeline import Child

STUDY_FILE = "study.yaml"
CONFIG_FILE = "config.yaml"
MAY_DIFFER = ("out", "threads")
ENDING = 30.0
"""Seconds to wait for a run of a study that was killed a moment ago: it notices, and ends."""


def run_study(study: StudyConfig, out: Path, console: Console | None = None) -> list[Result]:
    """Run the study's runs one after another, each in a new process, and return the result of each.

    A finished run is skipped, and an interrupted one is resumed from its last checkpoint. One that fails does not stop
    the others. A study that was killed at any point continues when it is called again. After each run the report is
    written again.

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
    records = [recorded(cell) for cell in grid]
    done = sum(map(_is_finished, records))
    console.print(f"study in {out}: {done} of {len(grid)} runs recorded already", soft_wrap=True)
    write_text(out / STUDY_FILE, study.to_yaml())
    progress = Progress(grid, console)
    progress.recorded(records)
    results: list[Result] = []
    report: Path | None = None
    for cell, record in zip(grid, records, strict=True):
        results.append(_settle(cell, record, progress))
        try:
            write_cards(study, results)
            report = write_page(results, out)
        except (FrostlineError, OSError) as reason:  # the runs matter more
            progress.say(cell, f"the report is not written: {first_line(reason)}", style="red")
    if report is not None:
        console.print(f"report: {report}", soft_wrap=True)
    return results


def _settle(cell: Cell, record: RunRecord | None, progress: Progress) -> Result:
    config = cell.config.model_dump(mode="json", exclude_unset=True)
    begun = time.monotonic()

    def failed(error: str) -> Result:
        progress.ended(cell, time.monotonic() - begun, f"failed: {error}", whole=False, style="red")
        return Result(cell, None, error)

    try:
        if not _is_finished(record):
            with own_folder(cell.folder, ENDING):
                record = recorded(cell)  # what became of it in the meantime
                write_text(cell.folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
    except CheckpointError as reason:
        return failed(str(reason))
    if _is_finished(record):
        progress.leave(cell)
        progress.say(cell, "already recorded")
        return Result(cell, record)
    tried = record is None and (cell.folder / TRIALS_FILE).is_file()  # `auto` was stopped while it made trials
    progress.begins(cell, _WHAT["trials" if tried else "" if record is None else record.status])
    error = Child(_command(cell.folder / CONFIG_FILE, resume=tried or record is not None)).wait()
    seconds = time.monotonic() - begun
    try:
        found = read_record(cell.folder)
    except CheckpointError as reason:
        return failed(error or str(reason))
    if found.status != "finished":
        return failed(error or "its process ended before the run was finished")
    # A run that was recorded as finished is finished, whatever became of its process after that.
    after = f" (then its process failed: {error})" if error else ""
    text = f"finished in {duration_text(seconds)}{_headline(found)}{after}"
    progress.ended(cell, seconds, text, whole=record is None and not tried)
    return Result(cell, found)


_WHAT = {
    "": "training",
    "trials": "going on with trials that were interrupted",
    "running": "resuming a run that was interrupted",
    "failed": "trying a run again that failed",
}


def _headline(record: RunRecord) -> str:
    metric = record.data.metric
    value = None if record.metrics is None else record.metrics.after.get(metric)
    return "" if value is None else f", {metric} {mean_text(value)}"


def _command(config: Path, *, resume: bool) -> Sequence[str]:
    # -P: modules that happen to be in the working folder are not imported.
    return [sys.executable, "-P", "-m", "frostline", "train", str(config), *(["--resume"] if resume else [])]


def _is_finished(record: RunRecord | None) -> bool:
    return record is not None and record.status == "finished"


def recorded(cell: Cell) -> RunRecord | None:
    """The record of a study's run, if there is one.

    Raises `CheckpointError` when it cannot be read, or has other settings than the study.
    """
    if not (cell.folder / RECORD_FILE).is_file():
        return None
    record = read_record(cell.folder)
    try:
        found = RunConfig.model_validate(record.config).model_dump(mode="json")
    except ValidationError:
        found = record.config
    wanted = cell.config.model_dump(mode="json")
    for key, value in wanted.items():
        left_to_the_machine = key == "bf16" and value is None
        if key not in MAY_DIFFER and not left_to_the_machine and found.get(key) != value:
            raise CheckpointError(
                f"{cell.folder} holds a {record.status} run with {key}={found.get(key)!r}, and the study asks for "
                f"{value!r}: remove that folder, or use another --out"
            )
    return record
