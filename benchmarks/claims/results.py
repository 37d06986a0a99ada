"""Comparisons of the records under docs/results, and what they say of a claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

from claims.records import Cell, Value, main_metric, metric, read

Verdict = Literal["holds", "does not hold", "cannot be told", "not run yet"]


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim.

    `line` has the numbers, `seeds` how many seeds each of them rests on, `part` which part of the study was judged,
    where it is not all of it.
    """

    verdict: Verdict
    line: str = ""
    seeds: tuple[int, ...] = ()
    part: str = ""


def differences(better: Cell, worse: Cell, value: Value) -> dict[int, float]:
    """By how much one cell is ahead of another, by seed."""
    ours, theirs = better.values(value), worse.values(value)
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


APART = 0.03
"""By how much the held-out loss of two seeds of one plan may differ."""


def doubt_of(found: Sequence[float], comparisons: int = 1) -> float:
    """Half of the interval of 95% of the mean (Student's t), for as many comparisons as are made at once."""
    degrees = len(found) - 1
    quantile = float(student.ppf(1 - 0.025 / comparisons, degrees))
    return quantile * statistics.stdev(found) / math.sqrt(len(found))


def judge(found: Iterable[float], least: float = 0.0, alone: float = math.inf, comparisons: int = 1) -> Verdict:
    """Whether a difference is at least `least`, as far as its spread over seeds tells.

    Args:
        found: the difference with each seed.
        least: what it should be at least.
        alone: with one seed, how far from `least` it has to be.
        comparisons: how many such questions one verdict has.
    """
    found = list(found)
    if not found:
        return "not run yet"
    mean = statistics.mean(found)
    doubt = doubt_of(found, comparisons) if len(found) > 1 else alone
    if abs(mean - least) <= doubt:
        return "cannot be told"
    return "holds" if mean >= least else "does not hold"


def spread(found: Iterable[float]) -> str:
    """Mean and standard deviation, as text."""
    found = list(found)
    mean = statistics.mean(found)
    return f"{mean:+.3f} ± {statistics.stdev(found):.3f}" if len(found) > 1 else f"{mean:+.3f}"


def guessing(*cells: Cell) -> bool:
    """Whether no cell is better than always giving the most common class, by two standard errors of one evaluation."""
    accuracies = [accuracy for cell in cells if (accuracy := cell.accuracy()) is not None]
    if len(accuracies) < len(cells):
        return False
    data = next(iter(cells[0].runs.values()))["data"]
    share = data["majority_share"]
    error = math.sqrt(share * (1 - share) / data["eval_rows"])
    return all(statistics.mean(accuracy) < share + 2 * error for accuracy in accuracies)


def ahead(
    study: str,
    better: str,
    worse: str,
    value: Value = main_metric,
    least: float = 0.0,
    alone: float = math.inf,
    comparisons: int = 1,
) -> Finding:
    """Whether one label is ahead of another, in each pair of model and task of a study.

    Where both are at the level of guessing, the difference is shown and not judged.

    Args:
        study: its name.
        better: the label that should be ahead.
        worse: the other one.
        value: what is compared; larger is better.
        least: by how much at least (0: ahead at all; below 0: not behind by more).
        alone: with one seed, how far from `least` it has to be.
        comparisons: how many such questions one verdict has.
    """
    found = read(study)
    lines, verdicts, seeds = [], list[Verdict](), []
    for model, task in found.places:
        one, other = found.at(model, task, better), found.at(model, task, worse)
        if one is None or other is None or not (apart := differences(one, other, value)):
            continue
        guessed = guessing(one, other)
        verdicts += [] if guessed else [judge(apart.values(), least, alone, comparisons)]
        seeds.append(len(apart))
        lines.append(f"{task} {spread(apart.values())}" + (" (both at guessing)" if guessed else ""))
    line = f"{better} over {worse}: {', '.join(lines)}" if lines else ""
    return Finding(together(verdicts, lines), line, tuple(seeds), of_tasks(len(lines), found.tasks))


def of_tasks(judged: int, tasks: int) -> str:
    """Which part of a study was judged, where it is not all of it."""
    return f"{judged} of {tasks} tasks" if judged < tasks else ""


def lower(study: str, better: str, worse: str, least: float = 0.0) -> Finding:
    """Whether one label has a lower held-out loss than another; see `ahead`."""
    return ahead(study, better, worse, metric("loss"), least, APART)


def ratio(study: str, label: str, baseline: str, value: Value, low: float, high: float) -> Finding:
    """Whether a cost, as a share of the baseline's, lies between two numbers: the median of all pairs of runs."""
    found = read(study)
    shares, seeds = list[float](), []
    for model, task in found.places:
        one, other = found.at(model, task, label), found.at(model, task, baseline)
        if one is not None and other is not None:
            ours, theirs = one.values(value), other.values(value)
            own = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys() if theirs[seed]]
            shares += own
            seeds += [len(own)] if own else []
    if not shares:
        return Finding("not run yet")
    middle = statistics.median(shares)
    line = f"{label} {middle:.2f} of {baseline} (from {min(shares):.2f} to {max(shares):.2f})"
    verdict: Verdict = "holds" if low <= middle <= high else "does not hold"
    return Finding(verdict, line, tuple(seeds), of_tasks(len(seeds), found.tasks))


def together(verdicts: Sequence[Verdict], shown: Sequence[str] = ()) -> Verdict:
    """One verdict for several cells: all have to hold; one that does not is enough to refute.

    Args:
        verdicts: of the cells that were judged.
        shown: what was measured, judged or not: with no verdict the claim cannot be told.
    """
    if not verdicts:
        return "cannot be told" if shown else "not run yet"
    for verdict in ("does not hold", "cannot be told"):
        if verdict in verdicts:
            return verdict  # type: ignore[return-value]
    return "holds"


def both(*findings: Finding) -> Finding:
    """Several findings of one claim."""
    known = [one for one in findings if one.verdict != "not run yet"]
    if not known:
        return Finding("not run yet")
    verdict = together([one.verdict for one in known])
    parts = [one.part for one in known if one.part]
    if len(known) < len(findings):
        parts = [f"{len(known)} of {len(findings)} comparisons run"]
    seeds = tuple(count for one in known for count in one.seeds)
    return Finding(verdict, "; ".join(one.line for one in known), seeds, max(parts, default=""))


def points(study: str) -> dict[str, dict[int, float]]:
    """Each label with its ranking score for each seed (paper 001): per pair of model and task the best gets one point
    less than there are settings, the worst 0, ties the mean; then the mean over the pairs. The best label comes first.

    A pair counts when it has every setting of the study, with a seed that all of them have.
    """
    found, totals = read(study), dict[str, dict[int, list[float]]]()
    most = max((len(found.labels(*place)) for place in found.places), default=0)
    for model, task in found.places:
        cells = [cell for cell in found.cells if (cell.model, cell.task) == (model, task)]
        if len(cells) < most:
            continue
        for seed in set.intersection(*(set(cell.runs) for cell in cells)):
            scores = {cell.label: cell.values(main_metric)[seed] for cell in cells}
            for label, score in scores.items():
                below = sum(other < score for other in scores.values())
                same = sum(other == score for other in scores.values()) - 1
                totals.setdefault(label, {}).setdefault(seed, []).append(below + same / 2)
    found_points = {
        label: {seed: statistics.mean(own) for seed, own in by_seed.items()} for label, by_seed in totals.items()
    }
    return dict(sorted(found_points.items(), key=lambda pair: -statistics.mean(pair[1].values())))
