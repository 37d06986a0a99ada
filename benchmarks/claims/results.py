"""The records under docs/results, and comparisons of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
Verdict = Literal["holds", "does not hold", "cannot be told", "not run yet"]
Value = Callable[[dict[str, Any]], float | None]
"""A number of a record."""


def metric(name: str) -> Value:
    """A metric after training; where a smaller one is better, with the other sign."""
    sign = -1.0 if name in ("loss", "perplexity") else 1.0

    def value(record: dict[str, Any]) -> float | None:
        found = ((record.get("metrics") or {}).get("after") or {}).get(name)
        return None if found is None else sign * found

    return value


def main_metric(record: dict[str, Any]) -> float | None:
    """The task's main metric after training."""
    return metric(record["data"]["metric"])(record)


def measured(name: str) -> Value:
    """A measured number of a record."""
    return lambda record: (record.get("measured") or {}).get(name)


def predicted(name: str) -> Value:
    """A predicted number of a record."""
    return lambda record: (record.get("predicted") or {}).get(name)


@dataclass(frozen=True)
class Cell:
    """The runs of one label on one model and task, by seed."""

    model: str
    task: str
    label: str
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def values(self, value: Value) -> dict[int, float]:
        found = {seed: value(record) for seed, record in self.runs.items()}
        return {seed: number for seed, number in found.items() if number is not None}

    def mean(self, value: Value) -> float:
        return statistics.mean(self.values(value).values())


@dataclass(frozen=True)
class Study:
    """The finished runs of a study."""

    name: str
    cells: tuple[Cell, ...]

    def at(self, model: str, task: str, label: str) -> Cell | None:
        return next((cell for cell in self.cells if (cell.model, cell.task, cell.label) == (model, task, label)), None)

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each pair of model and task."""
        return list(dict.fromkeys((cell.model, cell.task) for cell in self.cells))

    def labels(self, model: str, task: str) -> list[str]:
        return [cell.label for cell in self.cells if (cell.model, cell.task) == (model, task)]


def read(name: str, folder: Path = RESULTS) -> Study:
    """The study called `name`: its folders are model / task / label / seed."""
    cells: dict[tuple[str, str, str], Cell] = {}
    for path in sorted((folder / name).glob("*/**/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] != "finished":
            continue
        *_, model, task, label, seed = path.parent.parts
        key = (model, task, label)
        cells.setdefault(key, Cell(*key)).runs[int(seed.removeprefix("seed"))] = record
    return Study(name, tuple(cells.values()))


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim: the verdict, the numbers in one line, and the number of seeds."""

    verdict: Verdict
    line: str = ""
    seeds: int = 0


def differences(better: Cell, worse: Cell, value: Value) -> list[float]:
    """By how much one cell is ahead of another, seed by seed."""
    ours, theirs = better.values(value), worse.values(value)
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


APART = 0.03
"""By how much the held-out loss of two seeds of one plan may differ."""


def judge(found: Sequence[float], least: float = 0.0, alone: float = math.inf) -> Verdict:
    """Whether a difference is at least `least`, as far as its spread tells: two standard errors of the mean.

    Args:
        found: the difference with each seed.
        least: what it should be at least.
        alone: with one seed, how far from `least` it has to be.
    """
    if not found:
        return "not run yet"
    mean = statistics.mean(found)
    doubt = 2 * statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else alone
    if abs(mean - least) <= doubt:
        return "cannot be told"
    return "holds" if mean >= least else "does not hold"


def spread(found: Sequence[float]) -> str:
    """Mean and standard deviation, as text."""
    mean = statistics.mean(found)
    return f"{mean:+.3f} ± {statistics.stdev(found):.3f}" if len(found) > 1 else f"{mean:+.3f}"


def ahead(
    study: str, better: str, worse: str, value: Value = main_metric, least: float = 0.0, alone: float = math.inf
) -> Finding:
    """Whether one label is ahead of another, in each pair of model and task of a study.

    Args:
        study: its name.
        better: the label that should be ahead.
        worse: the other one.
        value: what is compared; larger is better.
        least: by how much at least (0: ahead at all; below 0: not behind by more).
        alone: with one seed, how far from `least` it has to be.
    """
    found = read(study)
    lines, verdicts, seeds = [], [], 0
    for model, task in found.places:
        one, other = found.at(model, task, better), found.at(model, task, worse)
        if one is None or other is None or not (apart := differences(one, other, value)):
            continue
        verdicts.append(judge(apart, least, alone))
        seeds = max(seeds, len(apart))
        lines.append(f"{task} {spread(apart)}")
    return Finding(together(verdicts), "; ".join(lines), seeds)


def lower(study: str, better: str, worse: str, least: float = 0.0) -> Finding:
    """Whether one label has a lower held-out loss than another; see `ahead`."""
    return ahead(study, better, worse, metric("loss"), least, APART)


def ratio(study: str, label: str, baseline: str, value: Value, low: float, high: float) -> Finding:
    """Whether a cost, as a share of the baseline's, lies between two numbers: the median of all pairs of runs."""
    found = read(study)
    shares: list[float] = []
    for model, task in found.places:
        one, other = found.at(model, task, label), found.at(model, task, baseline)
        if one is not None and other is not None:
            ours, theirs = one.values(value), other.values(value)
            shares += [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys() if theirs[seed]]
    if not shares:
        return Finding("not run yet")
    middle = statistics.median(shares)
    line = f"{middle:.2f} of {baseline} (from {min(shares):.2f} to {max(shares):.2f}, {len(shares)} pairs of runs)"
    return Finding("holds" if low <= middle <= high else "does not hold", line, len(shares))


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several cells: all have to hold; one that does not is enough to refute."""
    if not verdicts:
        return "not run yet"
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
    return Finding(verdict, ". ".join(one.line for one in known), min(one.seeds for one in known))


def points(study: str) -> Iterator[tuple[str, float]]:
    """Each label with its ranking score (paper 001): per pair of model and task the best gets one point less than there
    are settings, the worst 0, ties the mean; then the mean over the pairs. The best label comes first.

    A pair counts when it has every setting of the study, with the seeds that all of them have."""
    found, totals = read(study), dict[str, list[float]]()
    most = max((len(found.labels(*place)) for place in found.places), default=0)
    for model, task in found.places:
        cells = [cell for cell in found.cells if (cell.model, cell.task) == (model, task)]
        seeds = set.intersection(*(set(cell.runs) for cell in cells))
        if len(cells) < most or not seeds:
            continue
        means = {cell.label: statistics.mean(cell.values(main_metric)[seed] for seed in seeds) for cell in cells}
        for label, mean in means.items():
            below = sum(other < mean for other in means.values())
            same = sum(other == mean for other in means.values()) - 1
            totals.setdefault(label, []).append(below + same / 2)
    yield from sorted(((label, statistics.mean(own)) for label, own in totals.items()), key=lambda pair: -pair[1])
