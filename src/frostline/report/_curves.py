"""Figures over training: losses by step and by time, and the trials of `auto`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from frostline.core.shown import one_line
from frostline.records import RunRecord
from frostline.report._figure import SECONDS, Figure, Legend, Member, Subject, number, unit_of, words
from frostline.report._format import mean_text, seconds_text
from frostline.report._svg import COLOURS, LINES, marker, path, plot, swatch, tag
from frostline.report._trials import trial_points

LOSSES = {
    "loss": "Training loss",
    "eval_loss": "Loss on the evaluation rows while training",
    "held_out_loss": "Held-out loss while training",
}
_NO_POINT: list[tuple[float | None, float | None, float | None]] = [(None, None, None)]

MOST_POINTS = 60
"""Points of a line that are drawn and listed; of longer logs they are picked evenly."""


class Point(NamedTuple):
    """A point of a loss curve; `seconds` is None where a record of an earlier version has no times."""

    step: float
    seconds: float | None
    loss: float


def losses(subject: Subject) -> list[Figure]:
    """A figure for each kind of loss that was logged: by step, and by time."""
    return [figure for key in LOSSES if (figure := _losses(subject, key)) is not None]


def _losses(subject: Subject, key: str) -> Figure | None:
    curves = [
        (member, points) for member in subject.members if (points := mean_curve([r.record for r in member.runs], key))
    ]
    if not curves:
        return None
    timed = [(m, points) for m, points in curves if points[-1].seconds is not None]
    drawings = [_drawn(f"{LOSSES[key]} by step", "step", curves, lambda point: point.step)]
    if timed:
        size, unit = unit_of([points[-1].seconds or 0.0 for _, points in timed], SECONDS)
        by_time = f"training time, {unit}"
        drawings.append(_drawn(f"{LOSSES[key]} by time", by_time, timed, lambda point: (point.seconds or 0.0) / size))
    missing = ", ".join(member.name for member, points in curves if points[-1].seconds is None)
    many = any(len(member.runs) > 1 for member, _ in curves)
    return Figure(
        name=f"{subject.name}-{key.replace('_', '-')}",
        title=LOSSES[key],
        note=("Mean over the seeds at the steps that all of them logged. " if many else "")
        + "By step, and by the time of training with the caching pass."
        + (f" Without times, since their records are of an earlier version: {missing}." if missing else ""),
        drawings=tuple(drawings),
        columns=("strategy", "step", "time", "loss"),
        rows=tuple(
            (
                *words(member.row.strategy),
                number(point.step),
                number(point.seconds, seconds_text(point.seconds)),
                number(point.loss),
            )
            for member, points in curves
            for point in points
        ),
        legend=tuple(member.legend(line=True) for member, _ in curves),
        wide=True,
    )


def mean_curve(records: Sequence[RunRecord], key: str) -> list[Point]:
    """The mean over records of a logged loss, at the steps that all of them logged; else that of the first alone."""
    logs = [found for record in records if (found := _logged(record, key))]
    if not logs:
        return []
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    if not steps:
        logs, steps = logs[:1], sorted(logs[0])
    if len(steps) > MOST_POINTS:
        steps = [steps[round(i * (len(steps) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    return [_mean_point(step, [log[step] for log in logs]) for step in steps]


def _mean_point(step: float, entries: Sequence[tuple[float | None, float]]) -> Point:
    times = [seconds for seconds, _ in entries if seconds is not None]
    whole = len(times) == len(entries)
    return Point(step, statistics.fmean(times) if whole else None, statistics.fmean(loss for _, loss in entries))


def _logged(record: RunRecord, key: str) -> dict[float, tuple[float | None, float]]:
    """Step -> seconds and loss, without losses that are no number."""
    history = record.metrics.history if record.metrics else ()
    return {
        entry["step"]: (entry.get("seconds"), entry[key])
        for entry in history
        if key in entry and "step" in entry and math.isfinite(entry[key])
    }


def _drawn(title: str, name: str, curves: Sequence[tuple[Member, list[Point]]], across: Any) -> Markup:
    points = [point for _, line in curves for point in line]
    drawn = plot(
        title,
        (name, map(across, points)),
        ("loss", [point.loss for point in points]),
        x_zero=True,
        x_whole=name == "step",
    )
    for member, line in curves:
        places = [(drawn.x(across(point)), drawn.y(point.loss)) for point in line]
        label = tag("title", member.name)
        style = f"line c{member.mark % COLOURS} l{member.mark % LINES}"
        some = places[:: max(1, len(places) // 6)]
        marks = [tag("path", label, class_=style, d=path(places)), *(marker(member.mark, *at, size=3.5) for at in some)]
        drawn.add("g", *marks, data_strategy=member.row.strategy)
    return drawn.svg()


def trials(subject: Subject) -> list[Figure]:
    """A figure for each run that made trials: the held-out loss of each over the time of its steps."""
    found = [run for member in subject.members for run in member.runs if run.record.trials]
    return [_trials(f"{subject.name}-trials-{i}", run.label, run.record) for i, run in enumerate(found)]


def _trials(name: str, label: str, record: RunRecord) -> Figure:
    curves = [(trial, trial_points(trial, record)) for trial in record.trials]
    drawn = [(trial, points) for trial, points in curves if points]
    size, unit = unit_of([points[-1][1] for _, points in drawn], SECONDS)
    clock = (record.chosen or {}).get("clock", "time")
    picture = plot(
        f"held-out loss of the trials of {label}",
        (f"{clock} of the steps alone, {unit}", [point[1] / size for _, points in drawn for point in points]),
        ("held-out loss", [point[2] for _, points in drawn for point in points]),
        x_zero=True,
    )
    legend = []
    for index, (trial, points) in enumerate(drawn):
        places = [(picture.x(seconds / size), picture.y(loss)) for _, seconds, loss in points]
        won = " won" if trial["result"] == "won" else ""
        text = f"{trial['option']}, {trial['learning_rate']:g}: {trial['result']}"
        style = f"line c{index % COLOURS} l{index % LINES}{won}"
        picture.add("path", tag("title", one_line(text)), class_=style, d=path(places))
        picture.marks += [marker(index, *place, size=4) for place in places]
        legend.append(Legend(swatch(index, line=True), one_line(text)))
    return Figure(
        name=name,
        title=f"Trials of {one_line(label)}, seed {record.seed}",
        note="Short trainings of a few plans and learning rates. The one that won went on: its line is the run's. "
        "Those without a line diverged.",
        drawings=(picture.svg(),) if drawn else (),
        columns=("trial", "what trains", "learning rate", "result", "step", "time", "held-out loss"),
        rows=tuple(
            (
                *words(trial["option"], trial["what"]),
                number(trial["learning_rate"]),
                *words(trial["result"]),
                number(step),
                number(seconds, seconds_text(seconds)),
                number(loss, mean_text(loss)),
            )
            for trial, points in curves
            for step, seconds, loss in points or _NO_POINT
        ),
        legend=tuple(legend),
    )
