"""What a study shows and writes while it runs, with stand-ins for its runs; and with real ones, in a pipe."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from command_line import frostline
from frostline.core.sizes import duration_text
from frostline.records import RunRecord, read_record, write_record
from frostline.report import collect
from frostline.run import TRIALS_FILE
from frostline.study import Cell, Result, StudyConfig, _runner, cells, run_study
from frostline.study._progress import RunTimes
from made_records import run as made
from tiny_files import write_model, write_task

SECONDS = {"all": 40.0, "bot50": 20.0, "lora": 10.0}
commands: list[list[str]] = []
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def study(**given: Any) -> StudyConfig:
    document = {"models": ["org/base"], "tasks": ["rte"], "strategies": ["all", "bot50"], "seeds": [1, 2], **given}
    return StudyConfig.read(document)


def finished(cell: Cell, **given: Any) -> RunRecord:
    of = made(cell.label, cell.config.seed, model=cell.config.model, task=cell.config.task, **given).record
    return of.model_copy(update={"config": cell.config.model_dump(mode="json")})


@pytest.fixture
def console() -> Console:
    return Console(width=1000, record=True, file=io.StringIO())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Cell], str | None]], list[Cell]]:
    """Runs of a study are calls of a function of their cell, on a clock of their own."""
    clock, begun = [0.0], list[Cell]()
    commands.clear()
    monkeypatch.setattr(_runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def install(does: Callable[[Cell], str | None]) -> list[Cell]:
        grid: dict[Path, Cell] = {}
        settle = _runner._settle

        def told(cell: Cell, *given: Any) -> Result:
            grid[cell.folder / _runner.CONFIG_FILE] = cell
            return settle(cell, *given)

        class Child:
            def __init__(self, command: list[str]) -> None:
                commands.append(command)
                (self.cell,) = (cell for path, cell in grid.items() if str(path) in command)

            def wait(self) -> str | None:
                begun.append(self.cell)
                clock[0] += SECONDS[self.cell.label]
                return does(self.cell)

        monkeypatch.setattr(_runner, "_settle", told)
        monkeypatch.setattr(_runner, "Child", Child)
        return begun

    return install


def records(cell: Cell) -> None:
    write_record(finished(cell, seconds=SECONDS[cell.label]), cell.folder)


def test_the_time_left_is_the_mean_of_the_runs_most_alike(tmp_path: Path) -> None:
    grid = cells(study(tasks=["rte", "cb"], seeds=[1, 2]), tmp_path)
    rte_all, rte_bot, rte_all_2, rte_bot_2, cb_all, *_ = grid
    times = RunTimes()
    assert times.left(grid) is None and times.left([]) is None, "nothing is guessed"
    times.add(rte_all, 40.0)
    assert times.left([rte_bot]) == 40.0, "of the model and task"
    times.add(rte_bot, 20.0)
    assert times.left([rte_all_2, rte_bot_2]) == 60.0
    times.add(rte_all_2, 50.0)
    assert times.left([rte_all]) == 45.0 and times.left([]) == 0.0
    assert times.left([cb_all]) == pytest.approx((40 + 20 + 50) / 3), "of all"


def test_each_line_says_the_time_that_is_left(tmp_path: Path, console: Console, stand_in: Any) -> None:
    stand_in(records)
    results = run_study(study(), tmp_path / "out", console)
    assert [result.error for result in results] == [None] * 4
    lines = [line.split(": ", 1)[1] for line in console.export_text().splitlines()[1:-1]]
    assert lines == [
        "training; time left: unknown until a run has finished",
        "finished in 40 s, accuracy 0.500; time left: about 2 min 00 s for 3 runs",
        "training; time left: about 2 min 00 s for 3 runs",
        "finished in 20 s, accuracy 0.500; time left: about 1 min 00 s for 2 runs",
        "training; time left: about 1 min 00 s for 2 runs",
        "finished in 40 s, accuracy 0.500; time left: about 20 s for 1 run",
        "training; time left: about 20 s for 1 run",
        "finished in 20 s, accuracy 0.500",
    ]


def test_a_study_that_goes_on_knows_the_times_of_before(tmp_path: Path, console: Console, stand_in: Any) -> None:
    out = tmp_path / "out"
    first, second, third, last = cells(study(), out)
    for cell, step in ((first, 0), (second, 0), (third, 5)):
        record = finished(cell)
        assert record.measured is not None
        whole = record.measured.model_copy(update={"resumed_at_step": step})
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": f"2026-01-01T00:00:{10 + 20 * step}+00:00"}
        write_record(record.model_copy(update={**times, "measured": whole}), cell.folder)
    assert stand_in(records) == []
    run_study(study(), out, console)
    said = console.export_text()
    assert "3 of 4 runs recorded already" in said
    assert f"{last.folder}: training; time left: about {duration_text(10)} for 1 run" in said, "not the resumed one"


def test_the_report_and_the_cards_are_written_as_it_goes(tmp_path: Path, console: Console, stand_in: Any) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def looks(cell: Cell) -> str | None:
        report = out / "report.html"
        seen.append(report.read_text() if report.exists() else "")
        if cell.label == "lora" and cell.config.seed == 1:
            return "the loss is nan | at step 1"
        records(cell)
        return None

    stand_in(looks)
    asked = study(strategies=["bot50", "all", "lora"], seeds=[1, 2])
    results = run_study(asked, out, console)
    assert [bool(result.error) for result in results] == [False, False, True, False, False, False]
    assert (
        seen[0] == ""
        and "bot50" in seen[1]
        and 'data-strategy="all"' not in seen[1]
        and 'data-strategy="all"' in seen[2]
    )
    assert "Runs without a result" not in seen[2] and "the loss is nan | at step 1" in seen[3]
    said = console.export_text()
    assert f"report: {out / 'report.html'}" in said
    assert "failed: the loss is nan | at step 1; time left: about 1 min 30 s for 3 runs" in said, "20 + 40 + their mean"
    for result in results:
        path = result.cell.folder / "README.md"
        assert path.exists() == (result.cell.label != "all" and not result.error)
        if path.exists():
            assert "`all`, same seed" in path.read_text(), "also of the run before the baseline"


def test_what_failed_is_run_again_and_what_is_finished_stays(tmp_path: Path, console: Console, stand_in: Any) -> None:
    out, fails = tmp_path / "out", [True]

    def does(cell: Cell) -> str | None:
        if cell.label == "all" and fails:
            record = finished(cell, status="failed", error="no memory")
            write_record(record, cell.folder)
            return "no memory"
        records(cell)
        # It ended badly after it was finished.
        return "killed by signal 9"

    begun = stand_in(does)
    results = run_study(study(seeds=[1]), out, console)
    assert [result.error for result in results] == ["no memory", None]
    said = console.export_text()
    assert "failed: no memory; time left: unknown until a run has finished" in said
    assert "finished in 20 s, accuracy 0.500 (then its process failed: killed by signal 9)" in said
    fails.clear()
    del begun[:]
    results = run_study(study(seeds=[1]), out, console)
    assert [cell.label for cell in begun] == ["all"] and not [one for one in results if one.error]
    assert "trying a run again that failed" in console.export_text()


def test_a_run_that_was_stopped_in_its_trials_goes_on_with_them(
    tmp_path: Path, console: Console, stand_in: Any
) -> None:
    first, _ = cells(study(seeds=[1]), tmp_path / "out")
    first.folder.mkdir(parents=True)
    (first.folder / TRIALS_FILE).write_text("{}")
    stand_in(records)
    run_study(study(seeds=[1]), tmp_path / "out", console)
    assert ["--resume" in command for command in commands] == [True, False]
    assert f"{first.folder}: going on with trials that were interrupted" in console.export_text()


def test_a_process_without_a_finished_record_has_failed(tmp_path: Path, console: Console, stand_in: Any) -> None:
    def does(cell: Cell) -> None:
        if cell.label == "all":
            write_record(finished(cell, status="running"), cell.folder)
        elif cell.label == "lora":
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / "run.json").write_text("{")

    stand_in(does)
    errors = [
        result.error or ""
        for result in run_study(study(strategies=["all", "bot50", "lora"], seeds=[1]), tmp_path / "out", console)
    ]
    assert "before the run was finished" in errors[0] and "holds no run.json" in errors[1] and "not JSON" in errors[2]


def test_a_report_that_cannot_be_written_does_not_end_the_study(
    tmp_path: Path, console: Console, stand_in: Any
) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    begun = stand_in(records)
    results = run_study(study(seeds=[1]), tmp_path / "out", console)
    assert len(begun) == 2 and not [one for one in results if one.error]
    shown = console.export_text()
    assert "the report is not written: " in shown and "report: None" not in shown


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A study of two real runs, of which the second is long, as the arguments of the command."""
    document = {
        "models": [str(write_model(tmp_path / "tiny"))],
        "tasks": [str(write_task(tmp_path / "days"))],
        "strategies": [{"name": "all", "max_steps": 2}, {"name": "bot50", "max_steps": 400, "save_steps": 5}],
        "seeds": [1],
        "config": {"per_device_train_batch_size": 4, "max_length": 16, "threads": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(document))
    return ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]


@pytest.mark.slow
@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_study_that_is_told_to_end_keeps_what_is_finished_and_goes_on(
    tmp_path: Path, files: list[str], ends: signal.Signals
) -> None:
    log, second = tmp_path / "log", tmp_path / "out" / "tiny" / "days" / "bot50" / "seed1"
    with log.open("w") as to:
        process = subprocess.Popen(
            [sys.executable, "-m", "frostline", *files],
            stderr=to,
            stdout=to,
            # What runs in the background may have inherited that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 200
        while not (second / "checkpoint-5").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, log.read_text()
        process.send_signal(ends)
        assert process.wait(60) == 1
    said = log.read_text()
    assert not CONTROL.search(said), "a pipe gets lines of text"
    assert "interrupted: run the same command again to continue" in said
    assert "time left: unknown until a run has finished" in said and "for 1 run" in said
    first = second.parents[1] / "all" / "seed1"
    assert read_record(first).status == "finished" and "all" in (tmp_path / "out" / "report.html").read_text()
    assert read_record(second).status in ("running", "failed")
    kept = (first / "run.json").read_bytes()
    again = frostline(*files)
    assert again.status == 0, again.err
    assert (first / "run.json").read_bytes() == kept and "1 of 2 runs recorded already" in again.err
    assert {one.record.status for one in collect(tmp_path / "out").runs} == {"finished"}
    assert "`all`, same seed" in (second / "README.md").read_text()
    assert "resumed at step" in (second / "README.md").read_text()
