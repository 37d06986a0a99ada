"""What a study writes as it goes: its report, and the runs' model cards beside that of the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from frostline.checkpoints import write_run_card
from frostline.core.files import write_text
from frostline.report import Failure, Run, Table, markdown, tabulate
from frostline.study._config import StudyConfig
from frostline.study._result import Result

REPORT_FILE = "report.md"


def table_of(study: StudyConfig, results: Sequence[Result]) -> Table:
    """The table of a study's results, with a line for each run that failed."""
    runs = [Run(result.cell.label, result.record, result.cell.folder) for result in results if result.record]
    failures = tuple(_failure(result) for result in results if result.error)
    return replace(tabulate(runs, study.baseline), failures=failures)


def write_report(study: StudyConfig, results: Sequence[Result], out: Path) -> Path:
    """Write the report of the results so far to the study's folder, and return its path."""
    path = out / REPORT_FILE
    write_text(path, markdown(table_of(study, results)))
    return path


def write_cards(study: StudyConfig, results: Sequence[Result]) -> None:
    """Write the model card of the last result's run again, beside the baseline with the same seed.

    Where the last result is the baseline, it is the others' cards that change.
    """
    *_, last = results
    of_baseline = last.cell.label == study.baseline
    for result in results if of_baseline else [last]:
        base = next((one for one in results if one.cell.label == study.baseline and _together(one, result)), None)
        if base is None or base is result or base.record is None or result.record is None:
            continue
        if not of_baseline or base is last:
            write_run_card(result.cell.folder, result.record, beside=base.record)


def _together(one: Result, other: Result) -> bool:
    """Whether two runs differ in their strategy alone."""
    mine, theirs = one.cell.config, other.cell.config
    return (mine.model, mine.task, mine.seed) == (theirs.model, theirs.task, theirs.seed)


def _failure(result: Result) -> Failure:
    config = result.cell.config
    return Failure(
        Path(config.model).name, Path(config.task).stem, result.cell.label, config.seed, result.error or "no reason"
    )
