"""The report as one HTML file, from the records below a folder. It needs no network, and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from frostline.core.errors import CheckpointError
from frostline.core.files import write_text
from frostline.core.shown import one_line, visible
from frostline.report._advice import Advice, advise, alone
from frostline.report._blocks import schedules, signals, strips
from frostline.report._costs import (
    predicted_and_measured,
    quality_against_memory,
    quality_against_time,
    quality_bars,
    ranking,
)
from frostline.report._curves import losses, trials
from frostline.report._figure import Cell, Figure, Member, Subject, number, words
from frostline.report._format import (
    MISSING,
    bytes_text,
    mean_text,
    ratio_text,
    seconds_text,
    share_text,
    short_count_text,
)
from frostline.report._render import title
from frostline.report._runs import STUDY_FILE, Found, Run, collect, look, named, planned_runs, study_baseline
from frostline.report._svg import swatch
from frostline.report._table import Failure, Mean, Table, TableRow, tabulate

REPORT_FILE = "report.html"
Draw = Callable[[Subject], Figure | list[Figure] | None]
FIGURES: tuple[Draw, ...] = (
    quality_against_time,
    quality_against_memory,
    quality_bars,
    strips,
    schedules,
    losses,
    predicted_and_measured,
    signals,
    trials,
)
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a figure may raise for a record whose free parts (plan, signals, trials) do not hold what they should."""


@dataclass(frozen=True)
class Section:
    """A group on the page. `alone` is told where there is no advice; `faults` are figures that could not be drawn."""

    subject: Subject
    title: str
    advice: Advice | None
    alone: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Member, Markup, tuple[Cell, ...]], ...]
    figures: tuple[Figure, ...]
    faults: tuple[str, ...]


def write_report(folder: Path, baseline: str | None = None, failures: Sequence[Failure] = ()) -> Path:
    """Write `report.html` in `folder`, from the records below it alone, and return its path.

    It can be called at any time, also while runs go on: the file is replaced as a whole.

    Args:
        folder: of a study, of a run, or any that holds runs.
        baseline: the strategy that the others are compared with; None: the study's own, or `all`.
        failures: runs that failed, also those that have no record.

    Raises `UserError` when no run is found, no record can be read, or `folder` cannot be written.
    """
    found = look(folder) if failures else collect(folder)
    table = tabulate(found.runs, baseline or study_baseline(folder), found.unreadable)
    recorded = {failure.folder for failure in table.failures}
    others = tuple(failure for failure in failures if failure.folder not in recorded)
    table = replace(table, failures=(*table.failures, *others))
    path = folder / REPORT_FILE
    try:
        write_text(path, page(folder, found, table))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}: use a folder in which you may write, "
            "or --format table, which writes nothing"
        ) from None
    return path


def page(folder: Path, found: Found, table: Table) -> str:
    """The report as HTML.

    Args:
        folder: that was looked through.
        found: the runs in it.
        table: of these runs.
    """
    runs = {str(run.folder): run for run in named(found.runs)}
    labels = dict.fromkeys(row.strategy for group in table.groups for row in group.rows)
    marks = {label: index for index, label in enumerate(labels)}
    metrics = {place: group.metric for group in table.groups for row in group.rows for place in row.folders}
    sections = [_section(f"g{i}", table, i, runs, marks) for i in range(len(table.groups))]
    style, script = (files("frostline.report").joinpath("page", name).read_text() for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader("frostline.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    return environment.get_template("page.html").render(
        name=one_line(folder.resolve().name or str(folder)),
        folder=one_line(str(folder)),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        counts=_counts(found),
        planned=planned if (planned := planned_runs(folder) or 0) >= len(found.runs) else None,
        study=(folder / STUDY_FILE).is_file(),
        several=len(sections) > 1,
        sections=sections,
        ranking=ranking(table, marks),
        failures=sorted(table.failures, key=lambda failure: _ORDER.index(failure.state)),
        notices=_notices(runs.values()),
        runs=[_run(folder, run, metrics.get(place)) for place, run in runs.items()],
        versions=_versions(found.runs),
        made=_time(max((run.record.finished or run.record.started for run in found.runs), default="")),
        version=found.runs[-1].record.versions.get("frostline", "") if found.runs else "",
    )


_ORDER = ("failed", "unreadable", "interrupted", "running", "finished")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _section(name: str, table: Table, index: int, runs: dict[str, Run], marks: dict[str, int]) -> Section:
    group = table.groups[index]
    members = tuple(
        Member(row, tuple(runs[folder] for folder in row.folders), marks[row.strategy]) for row in group.rows
    )
    subject = Subject(name, group, members)
    drawn = [_draw(figure, subject) for figure in FIGURES]
    figures = [one for some, _ in drawn for one in some]
    faults = [fault for _, fault in drawn if fault]
    columns, lines = _columns(subject)
    rows = tuple((member, swatch(member.mark), cells) for member, cells in zip(members, lines, strict=True))
    return Section(subject, title(group), advise(group), alone(group), columns, rows, tuple(figures), tuple(faults))


def _draw(draw: Draw, subject: Subject) -> tuple[list[Figure], str]:
    """The figures of a group without the rows whose records are damaged, and a line that names these."""
    try:
        drawn = draw(subject)
    except _DAMAGE as error:
        parts = [(member, replace(subject, members=(member,))) for member in subject.members]
        sound = tuple(member for member, part in parts if len(parts) > 1 and not _draw(draw, part)[1])
        damaged = [run.folder for member in subject.members if member not in sound for run in member.runs]
        figures = _draw(draw, replace(subject, members=sound))[0] if 0 < len(sound) < len(parts) else []
        what = f"{draw.__name__.replace('_', ' ')}: {'drawn without' if figures else 'not drawn because of'}"
        places = ", ".join(one_line(str(folder)) for folder in damaged)
        return figures, f"{what} a damaged record ({type(error).__name__}: {one_line(str(error))}): look at {places}"
    return (drawn if isinstance(drawn, list) else [drawn] if drawn else []), ""


def _columns(subject: Subject) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The headings of a group's table after the strategy, and the cells of each row. Columns without a number go."""
    group = subject.group
    others = dict.fromkeys(name for row in group.rows for name in row.metrics if name != group.metric)
    selects = any(row.selection_seconds and row.selection_seconds.mean for row in group.rows)
    several = any(len(row.seeds) > 1 for row in group.rows)

    def cells(row: TableRow) -> Iterable[tuple[str, Cell]]:
        yield one_line(group.metric), _mean(row.metrics.get(group.metric))
        yield "rank", number(row.rank, f"{row.rank:.3g}" if row.rank else MISSING)
        yield "time", _measured(row.run_seconds, seconds_text)
        if selects:
            yield "time to choose", _measured(row.selection_seconds, seconds_text)
        if group.baseline:
            yield "training time\u00a0×", _measured(row.time_ratio, ratio_text)
            yield "CPU per step\u00a0×", _measured(row.cpu_ratio, ratio_text)
        yield "peak memory", _measured(row.peak_memory_bytes, bytes_text)
        if group.baseline:
            yield "memory\u00a0×", _measured(row.memory_ratio, ratio_text)
        yield "trained parameters", number(row.trainable_parameters, short_count_text(row.trainable_parameters))
        yield "share", number(row.trainable_share, share_text(row.trainable_share))
        yield "FLOPs predicted", number(row.predicted_flops_ratio, ratio_text(row.predicted_flops_ratio))
        yield "memory predicted", number(row.predicted_memory_ratio, ratio_text(row.predicted_memory_ratio))
        if several:
            yield "runs", number(len(row.seeds))
        for name in others:
            yield one_line(name), _mean(row.metrics.get(name))

    lines = [list(cells(row)) for row in group.rows]
    kept = [place for place, _ in enumerate(lines[0]) if any(line[place][1].value is not None for line in lines)]
    return tuple(lines[0][i][0] for i in kept), [tuple(line[i][1] for i in kept) for line in lines]


def _mean(mean: Mean | None) -> Cell:
    return number(mean.mean, mean_text(mean.mean, mean.std)) if mean else Cell(MISSING)


def _measured(mean: Mean | None, text: Callable[[float | None], str]) -> Cell:
    return number(mean.mean, text(mean.mean)) if mean else Cell(MISSING)


def _counts(found: Found) -> list[tuple[str, int]]:
    counts = Counter(run.state for run in found.runs)
    told = [(state, counts[state]) for state in ("finished", "running", "interrupted", "failed") if counts[state]]
    return [*told, *([("unreadable", len(found.unreadable))] if found.unreadable else [])]


def _notices(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
    """Each notice once, with the runs that have it."""
    told: dict[str, list[str]] = {}
    for run in runs:
        for notice in run.record.notices:
            told.setdefault(notice, []).append(f"{run.label}, seed {run.record.seed}")
    return list(told.items())


def _run(folder: Path, run: Run, metric: str | None) -> dict[str, Any]:
    record = run.record
    after = record.metrics.after.get(metric) if record.metrics and metric else None
    place = run.folder.relative_to(folder) if run.folder.is_relative_to(folder) else run.folder
    return {
        "strategy": run.label,
        "state": run.state,
        "cells": (
            *words(str(place)),
            number(record.seed),
            *words(run.state, _time(record.started)),
            number(_lasted(record.started, record.finished), seconds_text(_lasted(record.started, record.finished))),
            number(after, f"{one_line(metric or '')} {mean_text(after)}"),
        ),
        "command": record.command or "not recorded: the record is of an earlier version; its settings are in run.json",
    }


def _time(text: str) -> str:
    return text.replace("T", " ").removesuffix("+00:00") + (" UTC" if text.endswith("+00:00") else "")


def _lasted(begun: str, ended: str | None) -> float | None:
    try:
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds() if ended else None
    except (ValueError, TypeError):
        return None


def _versions(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """For each library its versions, each with the number of runs that were made with it."""
    names = dict.fromkeys(name for run in runs for name in run.record.versions)
    return [(name, Counter(run.record.versions.get(name, "unknown") for run in runs).most_common()) for name in names]
