"""Which strategy to use, in words: the best, and the fastest of those that are nearly as good."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.core.shown import one_line
from frostline.report._format import mean_text, ratio_text, seconds_text
from frostline.report._table import FALLING, Group, TableRow

WITHIN = 0.02
"""How much worse than the best, as a share of it, a strategy may be to count as nearly as good."""


@dataclass(frozen=True)
class Pick:
    """A strategy that is advised: why, its quality, and its time (in words)."""

    strategy: str
    why: str
    quality: str
    time: str


@dataclass(frozen=True)
class Advice:
    """What to use on one model and task.

    Attributes:
        best: the best by the group's metric.
        quick: the one that takes the least time among those within 2% of the best; None where that is the best itself.
        cautions: what speaks against trusting it, a sentence each.
    """

    best: Pick
    quick: Pick | None
    cautions: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The advice as one line of text, without the cautions."""
        text = f"Use {self.best.strategy}: {self.best.why} ({self.best.quality}, {self.best.time})"
        if self.quick is None:
            return f"{text}."
        return f"{text}; or {self.quick.strategy}: {self.quick.why} ({self.quick.quality}, {self.quick.time})."


def advise(group: Group) -> Advice | None:
    """The advice of a group; None where nothing was compared by its metric."""
    metric = group.metric
    sign = -1.0 if metric in FALLING else 1.0
    rows = [row for row in group.rows if metric in row.metrics]
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: sign * row.metrics[metric].mean)
    most = best.metrics[metric].mean
    close = [row for row in rows if sign * (most - row.metrics[metric].mean) <= WITHIN * abs(most)]
    timed = [row for row in close if row.run_seconds is not None]
    quick = min(timed, key=_seconds, default=best)
    best_why = f"the best {one_line(metric)}"
    if quick is best and len(timed) > 1:
        best_why += f", and the least time of the {len(timed)} within {WITHIN:.0%} of it"
    elif quick is best:
        best_why += f", and no other is within {WITHIN:.0%} of it"
    return Advice(
        _pick(group, best, best_why),
        None if quick is best else _pick(group, quick, f"within {WITHIN:.0%} of it, in the least time"),
        _cautions(group, best, rows, sign),
    )


def _pick(group: Group, row: TableRow, why: str) -> Pick:
    mean = row.metrics[group.metric]
    time = "time unknown"
    if row.run_seconds is not None:
        time = seconds_text(row.run_seconds.mean)
        base = next((one for one in group.rows if one.strategy == group.baseline and one is not row), None)
        if base is not None and base.run_seconds is not None and base.run_seconds.mean:
            time += f", {ratio_text(row.run_seconds.mean / base.run_seconds.mean)} of {one_line(base.strategy)}"
    return Pick(one_line(row.strategy), why, f"{one_line(group.metric)} {mean_text(mean.mean, mean.std)}", time)


def _cautions(group: Group, best: TableRow, rows: list[TableRow], sign: float) -> tuple[str, ...]:
    mean = best.metrics[group.metric]
    found = []
    if all(row.metrics[group.metric].n == 1 for row in rows):
        found.append("One run each: a small difference may be chance. Use several seeds to know.")
    else:
        alike = [
            one_line(row.strategy)
            for row in rows
            if row is not best
            and sign * (mean.mean - row.metrics[group.metric].mean)
            <= max(mean.std or 0.0, row.metrics[group.metric].std or 0.0)
        ]
        if alike:
            verb = "is" if len(alike) == 1 else "are"
            found.append(f"{', '.join(alike)} {verb} within one standard deviation of the best.")
    if group.majority_share is not None and group.metric == "accuracy" and mean.mean <= group.majority_share:
        found.append("None is better than always answering the most common label.")
    if group.before is not None and sign * (mean.mean - group.before.mean) <= 0:
        found.append("None is better than the model before training.")
    return tuple(found)


def _seconds(row: TableRow) -> float:
    assert row.run_seconds is not None
    return row.run_seconds.mean
