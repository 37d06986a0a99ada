"""Figures by block: what trained, over time where the plan changed, and the signals that were measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from frostline.core.shown import one_line
from frostline.plan import CELLS
from frostline.report._figure import Figure, Legend, Member, Subject, number, words
from frostline.report._format import mean_text
from frostline.report._runs import Run
from frostline.report._svg import CHARACTER, Axis, drawing, marker, plot, tag

MODES = {symbol: mode for mode, (symbol, _) in CELLS.items()}
LETTERS = {"frozen": "", "partial": "P", "lora": "L", "prefix": "X", "adapter": "A", "full": "F"}
LINE, LABEL, GAP = 26.0, 150.0, 10.0
"""The height of a line of a strip, the room for names, and that beside the blocks."""
PARTS = {"embeddings": "emb", "final_norm": "norm", "head": "head"}


def strips(subject: Subject) -> Figure | None:
    """What trained in each block under every strategy whose plan did not change."""
    shown = [(member, run) for member in subject.members for run in _unlike(member) if not run.record.strip]
    if not shown:
        return None
    depth = max(len(_modes(run.record.plan)) for _, run in shown)
    beside = (550 - LABEL - 2 * GAP) / depth >= 14
    wide = min(26.0, ((550 if beside else 1100) - LABEL - 2 * GAP) / depth)
    several = {member.row.strategy for member, run in shown if run is not member.runs[0]}
    names = [
        f"{member.name}, seed {run.record.seed}" if member.row.strategy in several else member.name
        for member, run in shown
    ]
    marks = [mark for row, (member, run) in enumerate(shown) for mark in _line(row, names[row], member, run, wide)]
    bottom = 8 + LINE * len(shown)
    for block in range(0, depth - 3, _every(depth - 3, wide)):
        x = _left(block + 1, depth, wide) + wide / 2
        marks.append(tag("text", str(block), class_="tick mid", x=x, y=bottom + 16))
    right = _left(depth - 1, depth, wide) + wide
    marks.append(tag("text", "emb", class_="tick mid", x=_left(0, depth, wide) + wide / 2, y=bottom + 16))
    marks.append(tag("text", "norm, head", class_="tick end", x=right + 8, y=bottom + (34 if wide < 40 else 16)))
    return Figure(
        name=f"{subject.name}-blocks",
        title="What trained in each block",
        note="Blocks are numbered from 0 at the input. Empty: frozen.",
        drawings=(drawing("what trained in each block", max(560.0, right + 10), bottom + 40, marks),),
        columns=("strategy", "embeddings", "blocks", "final norm", "head"),
        rows=tuple(
            (
                *words(name, _mode_of(run.record.plan, "embeddings")),
                *words(ranges([_mode(block) for block in run.record.plan.get("blocks", ())])),
                *words(_mode_of(run.record.plan, "final_norm"), _mode_of(run.record.plan, "head")),
            )
            for name, (_, run) in zip(names, shown, strict=True)
        ),
        legend=_legend({mode for _, run in shown for mode in _modes(run.record.plan)}),
        wide=not beside,
    )


def schedules(subject: Subject) -> list[Figure]:
    """What trained when, for every strategy whose plan changed: its first run."""
    found = [(member, run) for member in subject.members for run in member.runs[:1] if run.record.strip]
    return [_schedule(f"{subject.name}-schedule-{i}", member, run) for i, (member, run) in enumerate(found)]


def _schedule(name: str, member: Member, run: Run) -> Figure:
    lines = [(line[:5].strip(), [MODES.get(symbol, "frozen") for symbol in line[5:]]) for line in run.record.strip]
    steps = run.record.measured.steps if run.record.measured else len(lines[0][1])
    columns = len(lines[0][1])
    tall = min(18.0, max(5.0, 420 / len(lines)))
    axis = Axis.over([0, steps], 52, 540, zero=True, whole=True)
    wide = (axis(steps) - axis(0)) / columns
    every = _every(len(lines), tall * 1.6)
    marks = []
    for row, (part, modes) in enumerate(lines):
        y = 8 + tall * row
        if not part.isdigit() or int(part) % every == 0:
            marks.append(tag("text", part, class_="tick end", x=44, y=y + tall / 2 + 4))
        for first, last, mode in _runs_of(modes):
            x, width = axis(0) + wide * first, wide * (last - first + 1)
            marks.append(tag("rect", class_=f"cell m-{mode}", x=x, y=y, width=width, height=tall))
    bottom = 8 + tall * len(lines)
    for tick in (tick for tick in axis.ticks if tick <= steps):
        marks.append(tag("text", axis.text(tick), class_="tick mid", x=axis(tick), y=bottom + 18))
    marks.append(tag("text", "step", class_="name mid", x=(axis.start + axis(steps)) / 2, y=bottom + 38))
    changes = len(run.record.changes)
    changed = "once" if changes == 1 else f"{changes} times"
    return Figure(
        name=name,
        title=f"What trained when: {member.name}",
        note=f"The run with seed {run.record.seed}: its plan changed {changed} in {steps} steps."
        + (f" A column is {steps / columns:.3g} steps." if steps > columns else ""),
        drawings=(drawing(f"what trained when under {member.name}", 560, bottom + 46, marks),),
        columns=("part", "columns of steps"),
        rows=tuple(words(f"block {part}" if part.isdigit() else part, ranges(modes)) for part, modes in lines),
        legend=_legend({mode for _, modes in lines for mode in modes}),
    )


def signals(subject: Subject) -> list[Figure]:
    """The signals of every strategy that measured some: of its first run that did."""
    found: list[Run] = []
    for member in subject.members:
        run = next((run for run in member.runs if run.record.signals), None)
        if run is not None and not any(other.record.signals == run.record.signals for other in found):
            found.append(run)
    return [_signals(f"{subject.name}-signals-{i}", run.label, run) for i, run in enumerate(found)]


def _signals(name: str, label: str, run: Run) -> Figure:
    probe = run.record.signals or {}
    measured = {
        signal: [(_value(entry["value"]), _value(entry["error"])) for entry in entries]
        for signal, entries in probe.get("signals", {}).items()
    }
    depth = max((len(values) for values in measured.values()), default=0)
    return Figure(
        name=name,
        title=f"Signals of each block: {one_line(label)}",
        note=f"Measured on {probe.get('rows')} rows before training, at {probe.get('read')}. Whiskers: standard error.",
        # A name with a dot is a part of another signal; the table has it.
        drawings=tuple(_signal(signal, values) for signal, values in measured.items() if "." not in signal),
        columns=("block", *(heading for signal in measured for heading in (signal, f"{signal}, error"))),
        rows=tuple(
            (
                number(block),
                *(
                    number(value, None if value is None else mean_text(value) if abs(value) >= 0.01 else f"{value:.3g}")
                    for values in measured.values()
                    for value in (values[block] if block < len(values) else (None, None))
                ),
            )
            for block in range(depth)
        ),
        wide=True,
        small=True,
    )


def _signal(name: str, values: Sequence[tuple[float | None, float | None]]) -> Markup:
    known = [(i, value, error or 0.0) for i, (value, error) in enumerate(values) if value is not None]
    known = [entry for entry in known if math.isfinite(entry[1])]
    ends = [end for _, value, error in known for end in (value - error, value + error)]
    if ends and min(ends) > 0 and min(ends) < 0.5 * max(ends):
        ends.append(0.0)
    shown = name.replace("_", " ")
    drawn = plot(
        f"{shown} of each block",
        ("block", [-0.5, len(values) - 0.5]),
        (shown, ends),
        x_whole=True,
        width=360,
        height=230,
    )
    zero = drawn.y(0.0) if drawn.y.low <= 0 <= drawn.y.high else None
    for index, value, error in known:
        x, y = drawn.x(index), drawn.y(value)
        if zero is not None:
            drawn.add("path", class_="stem", d=f"M{x:.1f} {zero:.1f}V{y:.1f}")
        if error:
            drawn.add("path", class_="whisker", d=f"M{x:.1f} {drawn.y(value - error):.1f}V{drawn.y(value + error):.1f}")
        drawn.marks.append(marker(0, x, y, f"block {index}: {value:.4g}", 3.5))
    if zero is not None:
        drawn.add("line", class_="axis", x1=drawn.x.start, x2=drawn.x.end, y1=zero, y2=zero)
    return drawn.svg()


def ranges(modes: Sequence[str]) -> str:
    """Modes in their order as text, equal neighbours together: `0-3 frozen, 4-7 full`."""
    return ", ".join(
        f"{first} {mode}" if first == last else f"{first}-{last} {mode}" for first, last, mode in _runs_of(modes)
    )


def _unlike(member: Member) -> Iterator[Run]:
    """The first run of a row, and those that trained something else."""
    seen: list[list[str]] = []
    for run in member.runs:
        modes = _modes(run.record.plan)
        if len(modes) > 3 and modes not in seen:
            seen.append(modes)
            yield run


def _line(row: int, name: str, member: Member, run: Run, wide: float) -> list[Markup]:
    y = 8 + LINE * row
    modes = _modes(run.record.plan)
    shown = name if len(name) <= 18 else f"{name[:17]}…"
    marks = [tag("text", shown, class_="label end", x=LABEL - 10, y=y + LINE / 2 + 4)]
    for place, mode in enumerate(modes):
        x = _left(place, len(modes), wide)
        what = _names_of(len(modes))[place]
        marks.append(
            tag("rect", tag("title", f"{what}: {mode}"), class_=f"cell m-{mode}", x=x, y=y, width=wide, height=LINE - 4)
        )
    for first, last, mode in _runs_of(modes):
        # A letter in each cell where there is room, else one in the middle of equal cells.
        places = range(first, last + 1) if wide >= 14 else [(first + last) // 2] * ((last - first + 1) * wide >= 12)
        for place in places if LETTERS[mode] else ():
            x = _left(place, len(modes), wide) + wide / 2
            marks.append(tag("text", LETTERS[mode], class_=f"letter mid t-{mode}", x=x, y=y + 15))
    return [tag("g", *marks, data_strategy=member.row.strategy)]


def _left(place: int, depth: int, wide: float) -> float:
    """Where a cell begins: there are gaps between the embeddings, the blocks, and the norm with the head."""
    return LABEL + wide * place + GAP * ((place > 0) + (place > depth - 3))


def _runs_of(modes: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Equal neighbours: first place, last place, mode."""
    start = 0
    for mode, members in groupby(modes):
        count = len(list(members))
        yield start, start + count - 1, mode
        start += count


def _names_of(count: int) -> list[str]:
    return ["embeddings", *(f"block {index}" for index in range(count - 3)), "final norm", "head"]


def _modes(plan: Mapping[str, Any]) -> list[str]:
    blocks = [_mode(block) for block in plan.get("blocks", ())]
    return [_mode_of(plan, "embeddings"), *blocks, _mode_of(plan, "final_norm"), _mode_of(plan, "head")]


def _mode_of(plan: Mapping[str, Any], part: str) -> str:
    return _mode(plan.get(part, {}))


def _mode(entry: Any) -> str:
    mode = entry.get("mode") if isinstance(entry, Mapping) else entry
    return mode if mode in CELLS else "frozen"


def _every(count: int, room: float) -> int:
    """Of how many numbers one can be written, if each has so much room."""
    needed = CHARACTER * (len(str(count)) + 0.6)
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000) if step * room >= needed or step == 1000)


def _value(value: Any) -> float | None:
    return None if value is None else float(value)


def _legend(used: set[str]) -> tuple[Legend, ...]:
    return tuple(
        Legend(
            tag(
                "svg",
                tag("rect", class_=f"cell m-{mode}", x=1, y=1, width=16, height=14),
                *([tag("text", LETTERS[mode], class_=f"letter mid t-{mode}", x=9, y=12)] if LETTERS[mode] else []),
                viewBox="0 0 18 16",
                class_="swatch",
                aria_hidden="true",
            ),
            mode,
        )
        for mode in CELLS
        if mode in used
    )
