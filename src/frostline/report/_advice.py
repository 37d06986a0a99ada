"""Which strategy to use, in words: the best, and the fastest of those that are nearly as good."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.core.shown import one_line
from frostline.report._format import mean_text, ratio_text, seconds_text
from frostline.report._table import FALLING, Group, TableRow

WITHIN = 0.02
"""How much worse than the best, as a share of it, a strategy may be to count as nearly as good."""


@dataclass(frozen=True)
class Advice:
    """What to use on one model and task.

    Attributes:
        best: the best by the group's metric.
        quick: the one that takes the least time among those within 2% of the best; it may be the best itself.
        parts: the advice as one sentence, in parts; each with whether it is the name of a strategy.
        cautions: what speaks against trusting it, a sentence each.
    """

    best: TableRow
    quick: TableRow
    parts: tuple[tuple[str, bool], ...]
    cautions: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The advice as one line of text, without the cautions."""
        return "".join(text for text, _ in self.parts)


def advise(group: Group) -> Advice | None:
    """The advice of a group; None where there are no two strategies to compare by its metric."""
    metric = group.metric
    sign = -1.0 if metric in FALLING else 1.0
    rows = [row for row in group.rows if metric in row.metrics and row.metrics[metric].finite]
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: sign * row.metrics[metric].mean)
    most = best.metrics[metric].mean
    margin = WITHIN * abs(most) * (1 + 1e-9)  # what is worse by just this much counts, however it is rounded
    close = [row for row in rows if sign * (most - row.metrics[metric].mean) <= margin]
    timed = [row for row in close if row.run_seconds is not None]
    quick = min(timed, key=_seconds, default=best)
    quality, time = _quality(group, best), _time(group, best)
    name, within = one_line(metric), f"within {WITHIN:.0%}"
    parts: tuple[tuple[str, bool], ...]
    if quick is not best:
        told = f" for the best {name} ({quality}{time and f', in {time}'}), or "
        more = f" for the least time {within} of it ({_quality(group, quick)}, in {_time(group, quick)})."
        parts = ((one_line(best.strategy), True), (told, False), (one_line(quick.strategy), True), (more, False))
    elif len(timed) > 1:
        more = f": the best {name} ({quality}), and the least time ({time}) of the {len(timed)} {within} of it."
        parts = ((one_line(best.strategy), True), (more, False))
    else:
        more = f": the best {name} ({quality}{time and f', in {time}'}); no other is {within} of it."
        parts = ((one_line(best.strategy), True), (more, False))
    cautions = _cautions(group, best, rows, sign)
    lead = "None is to be recommended. The first is " if any(one.startswith("None") for one in cautions) else "Use "
    return Advice(best, quick, ((lead, False), *parts), cautions)


def alone(group: Group) -> str:
    """What the first strategy of a group came to, as a sentence, where there is no other to compare it with."""
    row = group.rows[0]
    before = "" if group.before is None else f" (before training {mean_text(group.before.mean)})"
    quality = (
        f"{one_line(group.metric)} {_quality(group, row)}{before}" if group.metric in row.metrics else "no quality"
    )
    time = _time(group, row)
    return f"{one_line(row.strategy)}: {quality}{time and f', in {time}'}."


def _quality(group: Group, row: TableRow) -> str:
    mean = row.metrics[group.metric]
    return mean_text(mean.mean, mean.std)


def _time(group: Group, row: TableRow) -> str:
    """The time of a row, and its share of the baseline's; empty where it is not known."""
    if row.run_seconds is None:
        return ""
    time = seconds_text(row.run_seconds.mean)
    base = next((one for one in group.rows if one.strategy == group.baseline and one is not row), None)
    if base is None or base.run_seconds is None or not base.run_seconds.mean:
        return time
    return f"{time}, {ratio_text(row.run_seconds.mean / base.run_seconds.mean)} of {one_line(base.strategy)}"


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
        if mean.n == 1:
            found.append(f"{one_line(best.strategy)} has one run: it may be ahead by chance.")
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
