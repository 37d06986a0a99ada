"""From runs to the figures of a table: means over seeds, ratios to a baseline. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from frostline.records import Measured, RunRecord
from frostline.report._runs import Run, State, Unreadable, named, study_baseline

FALLING = ("loss", "perplexity")
"""Metrics of which less is better."""


@dataclass(frozen=True)
class Mean:
    """A mean over `n` runs with the sample standard deviation (n - 1), None for a single run."""

    mean: float
    std: float | None
    n: int

    @property
    def finite(self) -> bool:
        """Whether it can be compared and drawn: a loss may be infinite, or no number."""
        return math.isfinite(self.mean)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean | None:
        """The mean of the values that are there; None when none is. One that is not finite leaves no deviation."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        if not all(map(math.isfinite, known)):
            return cls(sum(known), None, len(known))
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class TableRow:
    """One strategy on one model and task, over its seeds.

    `folders` are those of its runs, in the order of `seeds`. `metrics` are those after training; `rank` is the place
    of the headline metric's mean among the group's rows, 1 for the best, ties averaged. `selection_seconds` went by
    until the strategy had chosen its plan; `run_seconds` is that and the time of training together.
    `step_ratio`, `cpu_ratio` (processor time per step), `time_ratio` and `memory_ratio` are measured, to the
    group's baseline: the mean over the seeds that both have of this run's figure over the baseline's.
    `predicted_*` are the records' own, to full fine-tuning. Times in seconds, memory in bytes.
    """

    strategy: str
    seeds: tuple[int, ...]
    folders: tuple[str, ...]
    metrics: dict[str, Mean]
    rank: float | None
    trainable_parameters: float
    trainable_share: float
    seconds_per_step: Mean | None
    train_seconds: Mean | None
    peak_memory_bytes: Mean | None
    selection_seconds: Mean | None
    run_seconds: Mean | None
    step_ratio: Mean | None
    cpu_ratio: Mean | None
    time_ratio: Mean | None
    memory_ratio: Mean | None
    predicted_flops_ratio: float | None
    predicted_run_flops_ratio: float | None
    predicted_time_ratio: float | None
    predicted_memory_ratio: float | None
    predicted_peak_memory_bytes: float | None


@dataclass(frozen=True)
class Group:
    """The strategies on one model and task.

    `metric` is the task's headline, or `loss` where no run measured that (texts are generated only if asked for);
    `before` is its mean before training; `majority_share` is what always answering the most common label scores.
    `baseline` is None when no run of the group carries its label. `study` is the name of the study's folder, where the
    table is of several.
    """

    study: str
    model: str
    task: str
    metric: str
    majority_share: float | None
    before: Mean | None
    baseline: str | None
    rows: tuple[TableRow, ...]

    @property
    def name(self) -> str:
        """Model and task, after the study where there are several."""
        return (f"{self.study}: " if self.study else "") + f"{self.model} on {self.task}"


@dataclass(frozen=True)
class Failure:
    """A run without a result: it failed, was interrupted or still runs, or its record cannot be read.

    Of the last nothing is known but its `folder`.
    """

    model: str
    task: str
    strategy: str
    seed: int | None
    error: str
    state: State | Literal["unreadable"] = "failed"
    folder: str = ""


@dataclass(frozen=True)
class Rank:
    """A strategy's mean rank over the `groups` (models and tasks) in which it was run.

    `score` is the papers' ranking score: the mean of its points, n - 1 for the best of a group's n strategies, 0 for
    the last.
    """

    strategy: str
    rank: float
    groups: int
    score: float


@dataclass(frozen=True)
class Table:
    """`ranks`, the best first, are those of the strategies that were run in every group."""

    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    ranks: tuple[Rank, ...] = ()


def tabulate(runs: Sequence[Run], baseline: str | None = "all", unreadable: Sequence[Unreadable] = ()) -> Table:
    """The table of `runs`: a group for each study, model and task, in it a row for each label, the baseline's first.

    Otherwise groups and rows keep the order of the runs. Runs of one label that were set up differently become
    rows of their own (`named`). Ratios stay None where a figure or a run of the baseline is missing.

    Args:
        runs: those whose records could be read.
        baseline: the label that ratios are to; a study of several that does not have it has its own.
        unreadable: the records that could not.
    """
    names = _short_names({run.record.model.name for run in runs})
    groups: dict[tuple[object, ...], list[Run]] = {}
    failures = []
    for run in named(runs):
        record = run.record
        if record.status == "finished":
            groups.setdefault(run.cell, []).append(run)
        else:
            state = run.state
            told = record.error or ("still running" if state == "running" else state)
            place = (names[record.model.name], record.data.task, run.label, record.seed)
            failures.append(Failure(*place, told, state, str(run.folder)))
    failures += [Failure("", "", "", None, one.error, "unreadable", str(one.folder)) for one in unreadable]
    drawn = tuple(_group(names, members, baseline) for members in groups.values())
    return Table(drawn, tuple(failures), _mean_ranks(drawn))


def _group(names: dict[str, str], runs: Sequence[Run], baseline: str | None) -> Group:
    labels: dict[str, list[Run]] = {}
    for run in runs:
        labels.setdefault(run.label, []).append(run)
    study = runs[0].study
    if baseline not in labels and study is not None:
        baseline = study_baseline(study)
    present = baseline if baseline in labels else None
    reference = {run.record.seed: run.record for run in labels.get(baseline or "", [])}
    ordered = sorted(labels, key=lambda label: label != baseline)
    first = runs[0].record
    metric = first.data.metric
    measured = {name for run in runs if run.record.metrics for name in run.record.metrics.after}
    if first.data.kind == "generation" and metric not in measured and "loss" in measured:
        metric = "loss"
    before = (run.record.metrics.before.get(metric) for run in runs if run.record.metrics)
    return Group(
        study=study.name if study else "",
        model=names[first.model.name],
        task=first.data.task,
        metric=metric,
        majority_share=first.data.majority_share,
        before=Mean.of(before),
        baseline=present,
        rows=_ranked([_row(label, labels[label], reference) for label in ordered], metric),
    )


def _ranked(rows: Sequence[TableRow], metric: str) -> tuple[TableRow, ...]:
    """The rows with their ranks by a metric; a row without it, or where it is not finite, has none."""
    sign = 1 if metric in FALLING else -1
    values = {
        row.strategy: sign * row.metrics[metric].mean
        for row in rows
        if metric in row.metrics and row.metrics[metric].finite
    }

    def rank(row: TableRow) -> float | None:
        if row.strategy not in values:
            return None
        own = values[row.strategy]
        better = sum(value < own for value in values.values())
        return better + (1 + sum(value == own for value in values.values())) / 2

    return tuple(replace(row, rank=rank(row)) for row in rows)


def _mean_ranks(groups: Sequence[Group]) -> tuple[Rank, ...]:
    places: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        ranked = sum(row.rank is not None for row in group.rows)
        for row in group.rows:
            if row.rank is not None:
                places.setdefault(row.strategy, []).append((row.rank, ranked - row.rank))
    found = [
        Rank(name, statistics.fmean(rank for rank, _ in own), len(own), statistics.fmean(points for _, points in own))
        for name, own in places.items()
    ]
    return tuple(sorted((rank for rank in found if rank.groups == len(groups)), key=lambda rank: rank.rank))


def _row(label: str, runs: Sequence[Run], reference: dict[int, RunRecord]) -> TableRow:
    records = [run.record for run in runs]

    def measured(read: Callable[[Measured], float | None]) -> Mean | None:
        return Mean.of(_measured(record, read) for record in records)

    def ratio(read: Callable[[Measured], float | None]) -> Mean | None:
        return Mean.of(_ratio(record, reference.get(record.seed), read) for record in records)

    def predicted(key: str) -> float | None:
        mean = Mean.of(_number(record.predicted.get(key)) for record in records)
        return mean.mean if mean else None

    after = [record.metrics.after for record in records if record.metrics]
    metrics = {name: Mean.of(values.get(name) for values in after) for name in chain.from_iterable(after)}
    return TableRow(
        strategy=label,
        seeds=tuple(record.seed for record in records),
        folders=tuple(str(run.folder) for run in runs),
        metrics={name: mean for name, mean in metrics.items() if mean},
        rank=None,
        trainable_parameters=statistics.fmean(record.trainable_parameters for record in records),
        trainable_share=statistics.fmean(record.trainable_parameters / record.total_parameters for record in records),
        seconds_per_step=measured(_seconds_per_step),
        train_seconds=measured(_train_seconds),
        peak_memory_bytes=measured(_peak_memory),
        selection_seconds=measured(_selection_seconds),
        run_seconds=measured(_run_seconds),
        step_ratio=ratio(_seconds_per_step),
        cpu_ratio=ratio(_cpu_seconds_per_step),
        time_ratio=ratio(_train_seconds),
        memory_ratio=ratio(_peak_memory),
        predicted_flops_ratio=predicted("flops_ratio"),
        predicted_run_flops_ratio=predicted("run_flops_ratio"),
        predicted_time_ratio=predicted("time_ratio"),
        predicted_memory_ratio=predicted("memory_ratio"),
        predicted_peak_memory_bytes=predicted("peak_memory_bytes"),
    )


def _seconds_per_step(measured: Measured) -> float | None:
    return measured.seconds_per_step


def _cpu_seconds_per_step(measured: Measured) -> float | None:
    return measured.cpu_seconds_per_step


def _train_seconds(measured: Measured) -> float | None:
    # The time of a resumed run is that of its last process alone.
    return None if measured.was_resumed else measured.train_seconds


def _peak_memory(measured: Measured) -> float:
    return measured.peak_memory_bytes


def _selection_seconds(measured: Measured) -> float:
    return measured.selection_seconds


def _run_seconds(measured: Measured) -> float | None:
    phases = measured.seconds
    if "trials" in phases:  # the run goes on from one of them, so that its own training is a part of the time
        return sum(phases.get(name, 0.0) for name in ("trials", "caching", "training"))
    seconds = _train_seconds(measured)
    return None if seconds is None else seconds + measured.selection_seconds


def _measured(record: RunRecord | None, read: Callable[[Measured], float | None]) -> float | None:
    return read(record.measured) if record and record.measured else None


def _ratio(record: RunRecord, reference: RunRecord | None, read: Callable[[Measured], float | None]) -> float | None:
    own, base = _measured(record, read), _measured(reference, read)
    return own / base if own is not None and base else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Each model's last path component, or its full name where two share that."""
    names = list(names)
    last = {name: name.rstrip("/").rpartition("/")[2] for name in names}
    shared = {short for short in last.values() if list(last.values()).count(short) > 1}
    return {name: name if short in shared else short for name, short in last.items()}
