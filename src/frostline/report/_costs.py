"""Figures of quality and cost: quality against time and memory, bars, ranking score, predicted against measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup

from frostline.core.shown import one_line
from frostline.report._figure import BYTES, SECONDS, Figure, Legend, Member, Subject, number, unit_of, words
from frostline.report._format import bytes_text, mean_text, ratio_text, seconds_text
from frostline.report._svg import CHARACTER, COLOURS, Axis, Plot, drawing, marker, plot, tag
from frostline.report._svg import path as line_through
from frostline.report._table import FALLING, Mean, Table, TableRow

ROW = 30.0


def against(
    subject: Subject,
    cost: str,
    read: Callable[[TableRow], Mean | None],
    units: Sequence[tuple[float, str]],
    text: Callable[[float | None], str],
) -> Figure | None:
    """Quality against a cost, with the Pareto front; None where there are no two rows that have both.

    Args:
        subject: what it is drawn of.
        cost: its name.
        read: gives it.
        units: that it may be shown in.
        text: shows it in a table.
    """
    metric = subject.group.metric
    known = [
        (member, mean, quality)
        for member in subject.members
        if (mean := _finite(read(member.row))) and (quality := _finite(member.row.metrics.get(metric)))
    ]
    if len(known) < 2:
        return None
    size, unit = unit_of([mean.mean for _, mean, _ in known], units)
    shown = one_line(metric)
    falling = metric in FALLING
    front = pareto([(mean.mean, quality.mean) for _, mean, quality in known], falling)
    drawn = plot(
        f"{shown} against {cost}",
        (f"{cost}, {unit}", [mean.mean / size for _, mean, _ in known]),
        (f"{shown} ({'less' if falling else 'more'} is better)", [v for *_, q in known for v in _spread(q)]),
        x_zero=True,
    )
    corners = [(drawn.x(known[i][1].mean / size), drawn.y(known[i][2].mean)) for i in front]
    line = [*corners, (drawn.x.end, corners[-1][1])]
    drawn.add("path", class_="front", d=line_through(line, stairs=True))
    places = []
    for member, mean, quality in known:
        x, y = drawn.x(mean.mean / size), drawn.y(quality.mean)
        places.append((x, y))
        drawn.marks.append(_point(member, x, y, [drawn.y(value) for value in _spread(quality)]))
    names = _label_places([_short(member.name) for member, *_ in known], places, front, line, drawn)
    for index, (x, y) in names.items():
        member = known[index][0]
        drawn.add("text", _short(member.name), class_="label", x=x, y=y, data_strategy=member.row.strategy)
    return Figure(
        name=f"{subject.name}-{cost.split()[-1]}",
        title=f"Quality against {cost}",
        note="The line is the Pareto front: nothing is better at the same or a lower cost. "
        f"{'Lower' if falling else 'Higher'} and further left is better."
        + (" Whiskers: sample standard deviation." if any(q.std for *_, q in known) else "")
        + (" Some points have no room for a name: the legend has their marks." if len(names) < len(known) else ""),
        drawings=(drawn.svg(),),
        columns=("strategy", cost, shown, "deviation", "on the Pareto front"),
        rows=tuple(
            (
                *words(member.row.strategy),
                number(mean.mean, text(mean.mean)),
                number(quality.mean, mean_text(quality.mean)),
                number(quality.std, mean_text(quality.std)),
                *words("yes" if index in front else "no"),
            )
            for index, (member, mean, quality) in enumerate(known)
        ),
        legend=(*(member.legend() for member, *_ in known), Legend(_FRONT, "Pareto front")),
    )


def quality_against_time(subject: Subject) -> Figure | None:
    return against(subject, "time", lambda row: row.run_seconds, SECONDS, seconds_text)


def quality_against_memory(subject: Subject) -> Figure | None:
    return against(subject, "peak memory", lambda row: row.peak_memory_bytes, BYTES, bytes_text)


def pareto(points: Sequence[tuple[float, float]], falling: bool) -> list[int]:
    """The points (cost, quality) that no other is better than at the same or a lower cost, from the cheapest up."""
    sign = -1 if falling else 1
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -sign * points[index][1])):
        if not front or sign * points[index][1] > sign * points[front[-1]][1]:
            front.append(index)
    return front


def quality_bars(subject: Subject) -> Figure | None:
    """The papers' figure: the mean of every strategy, with the mean and deviation of the baseline as a band."""
    metric = subject.group.metric
    known = [(member, mean) for member in subject.members if (mean := _finite(member.row.metrics.get(metric)))]
    if len(known) < 2:
        return None
    baseline = next((mean for member, mean in known if member.row.strategy == subject.group.baseline), None)
    rows = [(member, mean, mean_text(mean.mean, mean.std)) for member, mean in known]
    named = one_line(subject.group.baseline or "")
    band_note = f" The line is the mean of {named}" if baseline else ""
    band_note += ", the band its deviation." if baseline and baseline.std else "." if baseline else ""
    many = any(mean.n > 1 for _, mean in known)
    return Figure(
        name=f"{subject.name}-quality",
        title=f"Quality of each strategy: {one_line(metric)}",
        note=("Mean over the seeds; whiskers: sample standard deviation." if many else "One run each.") + band_note,
        drawings=(_bars(f"{one_line(metric)} of each strategy", rows, one_line(metric), baseline),),
        columns=("strategy", one_line(metric), "deviation", "runs"),
        rows=tuple(
            (
                *words(member.row.strategy),
                number(mean.mean, mean_text(mean.mean)),
                number(mean.std, mean_text(mean.std)),
                number(mean.n),
            )
            for member, mean in known
        ),
    )


def ranking(table: Table, marks: dict[str, int]) -> Figure | None:
    """The papers' ranking score over all groups; None where there is one group, which its own ranks say all about."""
    if len(table.groups) < 2 or not table.ranks:
        return None
    rows = [
        (
            Member(_row_of(table, rank.strategy), (), marks[rank.strategy]),
            Mean(rank.score, None, 1),
            f"{rank.score:.3g}",
        )
        for rank in table.ranks
    ]
    return Figure(
        name="ranking",
        title="Ranking score",
        note=f"The mean over {len(table.groups)} pairs of model and task: the best of n strategies gets n - 1 points, "
        "the last 0; equal ones share theirs. Only strategies that were run on every pair.",
        drawings=(_bars("ranking score of each strategy", rows, "ranking score"),),
        columns=("strategy", "ranking score", "mean rank", "pairs"),
        rows=tuple(
            (*words(rank.strategy), number(rank.score), number(rank.rank), number(rank.groups)) for rank in table.ranks
        ),
    )


def predicted_and_measured(subject: Subject) -> Figure | None:
    """What was predicted beside what was measured: peak memory, and time as a share of the baseline's."""
    members = subject.members
    size, unit = unit_of([v for m in members for v in (m.row.predicted_peak_memory_bytes, _peak(m.row)) if v], BYTES)
    memory = [(m, m.row.predicted_peak_memory_bytes, _peak(m.row)) for m in members]
    time = [(m, _predicted_time(m.row), m.row.time_ratio.mean if m.row.time_ratio else None) for m in members]
    drawings = []
    if any(a is not None and b is not None for _, a, b in memory):
        drawings.append(_pairs(f"peak memory, {unit}", memory, size))
    if any(a is not None and b is not None for _, a, b in time):
        drawings.append(_pairs(f"time, as a share of {one_line(subject.group.baseline or '')}", time, 1.0))
    if not drawings:
        return None
    return Figure(
        name=f"{subject.name}-predicted",
        title="Predicted and measured",
        note="Hollow: predicted before the run. Solid: measured. Predicted times are shares of full fine-tuning with "
        "transformers.Trainer: of its operations, or of its seconds where the run was calibrated. "
        "Measured times are shares of the baseline with the same seed.",
        drawings=tuple(drawings),
        columns=("strategy", "memory predicted", "memory measured", "time predicted", "time measured"),
        rows=tuple(
            (
                *words(member.row.strategy),
                number(before, bytes_text(before)),
                number(after, bytes_text(after)),
                number(early, ratio_text(early)),
                number(late, ratio_text(late)),
            )
            for (member, before, after), (_, early, late) in zip(memory, time, strict=True)
        ),
        legend=(Legend(_HOLLOW, "predicted"), Legend(_SOLID, "measured")),
        wide=True,
    )


def _bars(title: str, rows: Sequence[tuple[Member, Mean, str]], name: str, baseline: Mean | None = None) -> Markup:
    """Horizontal bars from 0, with whiskers.

    Args:
        title: of the drawing.
        rows: a member, its mean, and the text beside its bar.
        name: of the axis.
        baseline: its mean is a line across all bars, its deviation a band behind them.
    """
    room = CHARACTER * max(len(text) for *_, text in rows)
    axis = Axis.over([v for _, mean, _ in rows for v in _spread(mean)], _names(rows), 548 - room, zero=True)
    top, bottom = 12.0, 12.0 + ROW * len(rows)
    bars, texts, line = [], [], []
    if baseline is not None:
        low, high = (axis(value) for value in _spread(baseline))
        bars.append(tag("rect", class_="band", x=low, width=high - low, y=top, height=bottom - top))
        line.append(tag("line", class_="mean", x1=axis(baseline.mean), x2=axis(baseline.mean), y1=top, y2=bottom))
    for index, (member, mean, text) in enumerate(rows):
        y = top + ROW * index + ROW / 2
        low, high = sorted((axis(0.0), axis(mean.mean)))
        box = {"x": low, "y": y - 8, "width": max(1.0, high - low), "height": 16.0}
        whole, strategy = tag("title", f"{member.name}: {text}"), member.row.strategy
        bars.append(tag("rect", whole, class_=f"bar c{member.mark % COLOURS}", data_strategy=strategy, **box))
        ends = [axis(value) for value in _spread(mean)]
        whisker = [tag("path", class_="whisker", d=f"M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}")] if mean.std else []
        named = tag("text", _short(member.name), class_="label end", x=axis.start - 10, y=y + 4)
        value = tag("text", text, class_="label", x=axis.end + 8, y=y + 4)
        texts.append(tag("g", *whisker, named, value, data_strategy=strategy))
    return drawing(title, 560, bottom + 48, [*_grid(axis, top, bottom, name), *bars, *line, *texts])


def _pairs(name: str, rows: Sequence[tuple[Member, float | None, float | None]], size: float) -> Markup:
    """A line for each row, from what was predicted to what was measured."""
    known = [value / size for _, *both in rows for value in both if value is not None]
    axis = Axis.over(known, _names(rows), 540, zero=True)
    top, bottom = 12.0, 12.0 + ROW * len(rows)
    svg = _grid(axis, top, bottom, name)
    for index, (member, before, after) in enumerate(rows):
        y = top + ROW * index + ROW / 2
        marks = [tag("text", _short(member.name), class_="label end", x=axis.start - 10, y=y + 4)]
        ends = [None if value is None else axis(value / size) for value in (before, after)]
        if ends[0] is not None and ends[1] is not None:
            marks.append(tag("line", class_="between", x1=ends[0], x2=ends[1], y1=y, y2=y))
        if ends[1] is not None:
            marks.append(tag("circle", class_="after", cx=ends[1], cy=y, r=6))
        if ends[0] is not None:
            marks.append(tag("circle", class_="before", cx=ends[0], cy=y, r=5))
        svg.append(tag("g", *marks, data_strategy=member.row.strategy))
    return drawing(f"{name}: predicted and measured", 560, bottom + 48, svg)


def _grid(axis: Axis, top: float, bottom: float, name: str) -> list[Markup]:
    svg = []
    for tick in axis.ticks:
        svg.append(tag("line", class_="grid", x1=axis(tick), x2=axis(tick), y1=top, y2=bottom))
        svg.append(tag("text", axis.text(tick), class_="tick mid", x=axis(tick), y=bottom + 16))
    svg.append(tag("text", name, class_="name mid", x=(axis.start + axis.end) / 2, y=bottom + 36))
    return svg


def _point(member: Member, x: float, y: float, ends: Sequence[float]) -> Markup:
    whisker = [tag("path", class_="whisker", d=f"M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}")] if ends[0] != ends[1] else []
    return tag("g", *whisker, marker(member.mark, x, y, member.name, 6), data_strategy=member.row.strategy)


def _label_places(
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    front: Sequence[int],
    line: Sequence[tuple[float, float]],
    drawn: Plot,
) -> dict[int, tuple[float, float]]:
    """Where the names of points stand, by their index: beside them. A name that would cover another is left out.

    Args:
        names: of the points.
        points: where they are drawn.
        front: the points whose names come first.
        line: the corners of the front, which goes to the right before it goes up or down. Names keep off it if they
            can.
        drawn: the drawing.
    """
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    avoided = []
    for (x, y), (right, end) in pairwise(line):
        avoided += [(x, y - 3, right, y + 3), (right - 3, min(y, end), right + 3, max(y, end))]
    found = {}
    for index in dict.fromkeys((*front, *range(len(points)))):
        x, y = points[index]
        width = CHARACTER * len(names[index])
        right, left, middle = x + 11, x - 11 - width, x - width / 2
        tries = [(right, y + 4), (left, y + 4), (middle, y - 12), (middle, y + 22), (right, y - 10), (right, y + 18)]
        tries += [(left, y - 10), (left, y + 18), (middle, y - 26), (middle, y + 36)]
        boxes = [(a, b - 11, a + width, b + 3) for a, b in tries]
        free = [
            box
            for box in boxes
            if box[0] >= drawn.x.start and box[2] <= drawn.width - 2 and box[1] >= 12 and box[3] <= drawn.y.start
            if not any(_overlap(box, other) for other in taken)
        ]
        if free:
            best = min(free, key=lambda box: sum(_overlap(box, other) for other in avoided))
            taken.append(best)
            found[index] = (best[0], best[1] + 11)
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, across) * max(0.0, down)


def _names(rows: Sequence[tuple[Member, object, object]]) -> float:
    """How much room names need at the left."""
    return 18 + CHARACTER * max(len(_short(member.name)) for member, *_ in rows)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _spread(mean: Mean) -> tuple[float, float]:
    return mean.mean - (mean.std or 0.0), mean.mean + (mean.std or 0.0)


def _finite(mean: Mean | None) -> Mean | None:
    """What can be drawn."""
    return mean if mean is not None and mean.finite else None


def _peak(row: TableRow) -> float | None:
    return row.peak_memory_bytes.mean if row.peak_memory_bytes else None


def _predicted_time(row: TableRow) -> float | None:
    return row.predicted_run_flops_ratio if row.predicted_time_ratio is None else row.predicted_time_ratio


def _row_of(table: Table, strategy: str) -> TableRow:
    return next(row for group in table.groups for row in group.rows if row.strategy == strategy)


_FRONT = tag(
    "svg", tag("path", class_="front", d="M0 11H10V3H28"), viewBox="0 0 28 14", class_="swatch wide", aria_hidden="true"
)
_HOLLOW = tag(
    "svg", tag("circle", class_="before", cx=7, cy=7, r=5), viewBox="0 0 14 14", class_="swatch", aria_hidden="true"
)
_SOLID = tag(
    "svg", tag("circle", class_="after", cx=7, cy=7, r=6), viewBox="0 0 14 14", class_="swatch", aria_hidden="true"
)
