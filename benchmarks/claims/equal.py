"""The studies in equal time (recipes/equal-time-*.yaml): labels are PLAN_SHARE_RATE, and `auto_SHARE`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from claims.records import RESULTS, Cell, Study, Value, main_metric, metric, read
from claims.results import APART, Finding, Verdict, differences, guessing, judge, of_tasks, spread, together

SEED = 42
"""The seed with which every rate is tried."""
SHARES = (0.2, 0.4, 0.6)
"""The shares of full fine-tuning's time that are studied."""
CELLS = 7
"""Pairs of model and data with such a study, when all are run."""
WHOLE = 1.0
"""Full fine-tuning in all of its time."""


def names() -> list[str]:
    """The studies that have records."""
    return sorted(path.name for path in RESULTS.glob("equal-time-*") if path.is_dir())


def best(found: Study) -> dict[tuple[str, float], Cell]:
    """For each plan and share the cell of the rate that is best with the first seed; `auto` has one."""
    cells: dict[tuple[str, float], Cell] = {}
    for cell in found.cells:
        plan, share, *_ = cell.label.split("_")
        key = (plan, float(share))
        if SEED in cell.runs and (key not in cells or quality(cell) > quality(cells[key])):
            cells[key] = cell
    return cells


def quality(cell: Cell) -> float:
    """With the first seed; larger is better."""
    return cell.values(value(cell))[SEED]


def encoder(cell: Cell) -> bool:
    """Whether its model is the sentence encoder, whose tasks are classes."""
    return "MiniLM" in cell.model


def value(cell: Cell) -> Value:
    """Accuracy of classes; held-out loss, with the other sign, of texts."""
    return main_metric if encoder(cell) else metric("loss")


def rate(cell: Cell) -> str:
    """The learning rate of a cell, as its label has it; empty for `auto`."""
    return cell.label.split("_")[2] if cell.label.count("_") == 2 else ""


def ahead(ours: Sequence[str], theirs: Sequence[str], share: float, least: float = 0.0, whole: bool = False) -> Finding:
    """Whether the best of some plans is ahead of the best of others in the same time, in every study.

    The plan and the rate are chosen with the first seed; with the others they are judged, where there are others.

    Args:
        ours: names of plans; of each the best rate counts.
        theirs: the plans that they are compared with.
        share: the share of full fine-tuning's time.
        least: by how much at least, in the study's own quality (below 0: not behind by more).
        whole: whether the others are `theirs` in all of full fine-tuning's time.
    """
    lines, verdicts, seeds = [], list[Verdict](), []
    for name in names():
        found = read(name)
        cells = best(found)
        one = _leader(cells, ours, share)
        other = _leader(cells, theirs, WHOLE if whole else share)
        if one is None or other is None or not (apart := differences(one, other, value(one))):
            continue
        judged = [difference for seed, difference in apart.items() if seed != SEED or len(apart) == 1]
        guessed = guessing(one, other)
        if not guessed:
            verdicts.append(judge(judged, least, math.inf if encoder(one) else APART))
        seeds.append(len(judged))
        line = f"{name.removeprefix('equal-time-')} {spread(judged)} ({_tried(found, one)} over {_tried(found, other)})"
        lines.append(line + (" (both at guessing)" if guessed else ""))
    return Finding(together(verdicts, lines), "; ".join(lines), tuple(seeds), of_tasks(len(lines), CELLS))


def rates(plans: Sequence[str], share: float = 0.4) -> Finding:
    """Whether no plan's best rate is below full fine-tuning's, in every study."""
    lines, verdicts, seeds = [], list[Verdict](), []
    for name in names():
        cells = best(read(name))
        known = {plan: float(rate(cells[plan, share])) for plan in plans if (plan, share) in cells}
        if len(known) > 1 and "all" in known:
            verdicts.append("holds" if min(known.values()) >= known["all"] else "does not hold")
            seeds.append(1)
            shown = ", ".join(f"{one:g} ({plan})" for plan, one in known.items())
            lines.append(f"{name.removeprefix('equal-time-')} best rates {shown}")
    return Finding(together(verdicts), "; ".join(lines), tuple(seeds), of_tasks(len(lines), CELLS))


NEAR = {True: 0.01, False: APART}
"""By how much a quality may be behind and still be called reached: accuracy of an encoder, held-out loss."""


def reached(plans: Sequence[str]) -> Finding:
    """Whether plans reach full fine-tuning's final quality in less than its time, and in which share, in every study.

    A plan that does not is told from one whose largest share was not run yet.
    """
    lines, verdicts = [], list[Verdict]()
    for name in names():
        cells = best(read(name))
        whole = cells.get(("all", WHOLE))
        shares = sorted({share for plan, share in cells if plan in plans and share < WHOLE})
        if whole is None or not shares:
            continue
        goal = quality(whole) - NEAR[encoder(whole)]
        shown = []
        for plan in plans:
            tried = sorted(share for one, share in cells if one == plan)
            at = next((share for share in tried if quality(cells[plan, share]) >= goal), None)
            if tried:
                shown.append(f"{plan} in {at:g}" if at else f"{plan} not in {tried[-1]:g}")
        met = any(quality(cells[key]) >= goal for key in cells if key[0] in plans)
        verdicts.append("holds" if met else "does not hold" if shares[-1] >= SHARES[-1] else "cannot be told")
        lines.append(f"{name.removeprefix('equal-time-')} {', '.join(shown)}")
    return Finding(together(verdicts), "; ".join(lines), (1,) if lines else (), of_tasks(len(lines), CELLS))


def step(plan: str, most: float) -> Finding:
    """Whether a step of a plan costs at most a share of a step of full fine-tuning: medians, in every study."""
    lines, shares = [], []
    for name in names():
        cells = [cell for cell in read(name).cells if cell.label.startswith((f"{plan}_", "all_"))]
        costs: dict[str, list[float]] = {}
        for cell in cells:
            kind = "all" if cell.label.startswith("all_") else plan
            costs.setdefault(kind, []).extend(one["measured"]["cpu_seconds_per_step"] for one in cell.runs.values())
        if len(costs) == 2:
            shares.append(statistics.median(costs[plan]) / statistics.median(costs["all"]))
            lines.append(f"{name.removeprefix('equal-time-')} {shares[-1]:.2f} ({len(costs[plan])} runs)")
    if not shares:
        return Finding("not run yet")
    verdict: Verdict = "holds" if max(shares) <= most else "does not hold"
    return Finding(verdict, "; ".join(lines), part=of_tasks(len(lines), CELLS))


def _leader(cells: dict[tuple[str, float], Cell], plans: Sequence[str], share: float) -> Cell | None:
    found = [cells[plan, share] for plan in plans if (plan, share) in cells]
    return max(found, key=quality, default=None)


def _tried(found: Study, cell: Cell) -> str:
    """A plan with the number of rates that were tried, and the share of the time that its steps took."""
    plan, share, *rated = cell.label.split("_")
    tried = [one for one in found.cells if one.label.split("_")[:2] == [plan, share] and SEED in one.runs]
    rates_tried = f", {len(tried)} {'rate' if len(tried) == 1 else 'rates'}" if rated else ""
    took = used(found, cell)
    return f"{plan}{rates_tried}" + (f", {took:.2f} of the time used" if took and took < 0.75 * float(share) else "")


def used(found: Study, cell: Cell) -> float | None:
    """Which share of full fine-tuning's time the steps of a cell took; None where that is not known."""
    whole = [one for one in found.cells if one.label.startswith("all_")]
    own = cell.runs.get(SEED)
    if not whole or own is None or cell.label.count("_") < 2:
        return None
    records = [record["measured"] for one in whole for record in one.runs.values()]
    full = statistics.median(measured["cpu_seconds_per_step"] for measured in records)
    steps = max(
        one.runs[SEED]["measured"]["steps"] / float(one.label.split("_")[1]) for one in whole if SEED in one.runs
    )
    return float(own["measured"]["steps"] * own["measured"]["cpu_seconds_per_step"] / (steps * full))
