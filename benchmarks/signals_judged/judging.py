"""How well a signal orders the blocks of a pair: rank correlation with their worth, and a verdict over all pairs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from claims.results import doubt_of

from signals_judged.pairs import PAIRS, SEEDS

USEFUL = 0.5
"""The rank correlation from which an order is of use: it explains a quarter of the variance of the ranks."""
LEARNED = 0.01
"""By how much the best block of a pair lowers the held-out loss, at least: below that its order is noise."""
LEFT_OUT = ("vds_log_gain", "shift_log_gain")
"""Signals that the tables leave out: nearly the order of the difference gains."""


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; the mean rank for equal values."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]


def spearman(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the blocks that both know; None where one of them is constant."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if len(both) < 3 or any(len(set(values)) == 1 for values in zip(*both, strict=True)):
        return None
    first, second = zip(*both, strict=True)
    return statistics.correlation(ranks(first), ranks(second))


@dataclass(frozen=True)
class Cell:
    """What was found for a pair with one seed: each block's worth, each signal's values."""

    worth: tuple[float, ...]
    signals: Mapping[str, Sequence[float | None]]

    def correlation(self, name: str) -> float | None:
        return spearman(self.signals[name], self.worth) if name in self.signals else None


def read(out: Path, pair: str, seed: int) -> Cell | None:
    """The findings of a pair and seed; None where some are still missing."""
    path = out / pair / f"signals-seed{seed}.json"
    if not path.exists():
        return None
    signals = json.loads(path.read_text(encoding="utf-8"))["signals"]
    blocks = len(next(iter(signals.values())))
    files = [out / pair / f"block{block}-seed{seed}.json" for block in range(blocks)]
    if not all(file.exists() for file in files):
        return None
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shown = {name: values for name, values in signals.items() if name not in LEFT_OUT}
    return Cell(tuple(one["before"] - one["after"] for one in found), {"depth": range(blocks), **shown})


def cells_of(out: Path) -> dict[str, dict[int, Cell]]:
    """Pair -> seed -> what was found, of those that are complete."""
    found = {pair.name: {seed: read(out, pair.name, seed) for seed in SEEDS} for pair in PAIRS}
    whole = {name: {seed: cell for seed, cell in cells.items() if cell} for name, cells in found.items()}
    return {name: cells for name, cells in whole.items() if cells}


@dataclass(frozen=True)
class Judged:
    """A signal's rank correlation with the worth of blocks.

    Attributes:
        pairs: pair -> one correlation for each seed.
        mean: over the pairs, of each pair's mean over its seeds.
        spread: the standard deviation over pairs and seeds; None for a single number.
        interval: of 95% for the mean over tasks (Student's t over the pairs); None for one pair.
    """

    pairs: Mapping[str, tuple[float, ...]]
    mean: float
    spread: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """helps: the interval leaves out 0, the mean is useful, and two models or more have its sign. does not: nothing
        in the interval is useful. Else it cannot be told."""
        if self.interval is None:
            return "cannot be told"
        low, high = self.interval
        if max(-low, high) < USEFUL:
            return "does not"
        models: dict[str, list[float]] = {}
        for name, found in self.pairs.items():
            models.setdefault(name.partition("/")[0], []).extend(found)
        agree = len(models) > 1 and len({statistics.mean(found) > 0 for found in models.values()}) == 1
        if low * high > 0 and abs(self.mean) >= USEFUL and agree:
            return "helps" if self.mean > 0 else "helps, reversed"
        return "cannot be told"


def judge(pairs: Mapping[str, tuple[float, ...]]) -> Judged:
    """Judge a signal by pair -> its correlation with each seed."""
    means = [statistics.mean(found) for found in pairs.values()]
    every = [one for found in pairs.values() for one in found]
    mean, interval = statistics.mean(means), None
    if len(means) > 1:
        half = doubt_of(means)
        interval = (max(-1.0, mean - half), min(1.0, mean + half))
    return Judged(pairs, mean, statistics.stdev(every) if len(every) > 1 else None, interval)


def judged(cells: Mapping[str, Mapping[int, Cell]]) -> dict[str, Judged]:
    """Signal -> its judgement, the largest |mean| first; only where some pair has it.

    Pairs of which no block learns do not count.
    """
    cells = {pair: seeds for pair, seeds in cells.items() if max(max(cell.worth) for cell in seeds.values()) >= LEARNED}
    names = dict.fromkeys(name for seeds in cells.values() for cell in seeds.values() for name in cell.signals)
    found = {}
    for name in names:
        by_seed = {pair: [cell.correlation(name) for cell in seeds.values()] for pair, seeds in cells.items()}
        known = {pair: tuple(one for one in values if one is not None) for pair, values in by_seed.items()}
        if kept := {pair: values for pair, values in known.items() if values}:
            found[name] = judge(kept)
    return dict(sorted(found.items(), key=lambda item: -abs(item[1].mean)))
