"""A table for the terminal, as Markdown, as CSV and as a JSON document. All show the same figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from frostline.core.shown import markdown_text, one_line
from frostline.report._advice import advise
from frostline.report._format import bytes_text, mean_text, ratio_text, seconds_text, share_text, short_count_text
from frostline.report._table import Failure, Group, Mean, Table, TableRow

# As in Markdown, and as in the terminal, where a table should fit into 80 columns.
HEADINGS = {
    "trained": "trained",
    "share": "share",
    "CPU/step ×": "CPU×",
    "time": "time",
    "time ×": "time×",
    "FLOPs (predicted)": "FLOPs",
    "memory": "memory",
    "memory ×": "mem×",
    "memory (predicted)": "pred.",
}

LEAVES = ("share", "time ×", "trained", "memory (predicted)", "memory ×", "time", "CPU/step ×")
"""The columns that a narrow terminal has no room for, the first one first."""


def document(table: Table) -> dict[str, Any]:
    """The table as plain data for JSON: every figure of every row, rounded nowhere."""
    return asdict(table)


def view(table: Table, metrics: Sequence[str] = ()) -> list[RenderableType]:
    """The table for the terminal: one per model and task, then a line for each run without a result.

    `metrics` are shown beside the headline one.
    """
    shown: list[RenderableType] = []
    for group in table.groups:
        shown += [Text(title(group), style="bold"), _Fitting(group, metrics), Text(_caption(group), style="dim")]
        shown += [*map(Text, _advice(group)), Text()]
    if len(table.groups) > 1 and table.ranks:
        shown += [Text(_ranks(table)), Text()]
    shown += [Text(_failure(failure), style="red") for failure in table.failures]
    return shown


@dataclass(frozen=True)
class _Fitting:
    """The rows of a group, as many columns as the terminal has room for, and a line that names the others."""

    group: Group
    metrics: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        header, rows = _cells(self.group, self.metrics)
        columns = [self._column(*cells) for cells in zip(header, *rows, strict=True)]
        left = []
        for heading in LEAVES:
            if _least_width(columns) <= options.max_width:
                break
            left += [column.shown for column in columns if column.heading == heading]
            columns = [column for column in columns if column.heading != heading]
        spare = options.max_width - _least_width(columns)
        drawn = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        widths = {}
        for column in (*columns[1:], columns[0]):  # numbers before names
            widths[column.heading] = column.least + max(0, min(spare, column.most - column.least))
            spare -= widths[column.heading] - column.least
        for number, column in enumerate(columns):
            drawn.add_column(
                column.shown,
                justify="right" if number else "left",
                width=widths[column.heading],
                no_wrap=column.least == column.most,
                overflow="ellipsis" if number else "fold",
            )
        for cells in zip(*(column.cells for column in columns), strict=True):
            drawn.add_row(*cells)
        yield drawn
        if left:
            yield Text(f"No room in {options.max_width} columns for {', '.join(left)}: use --format markdown or csv.")

    def _column(self, heading: str, *cells: str) -> _Column:
        shown = HEADINGS.get(heading, heading)
        most = max(map(cell_len, (shown, *cells)))
        # Only names, and a mean and its deviation, may be broken when the terminal is narrow.
        if heading == "strategy":
            return _Column(heading, shown, cells, min(12, most), most)
        if heading in map(one_line, (self.group.metric, *self.metrics)):
            return _Column(heading, shown, cells, min(most, max(len(heading), len("± 0.000"))), most)
        return _Column(heading, shown, cells, most, most)


@dataclass(frozen=True)
class _Column:
    """A column with the least and the largest width that it can use."""

    heading: str
    shown: str
    cells: tuple[str, ...]
    least: int
    most: int


def _least_width(columns: Sequence[_Column]) -> int:
    return sum(column.least + 1 for column in columns) - 1


def markdown(table: Table, metrics: Sequence[str] = ()) -> str:
    """The table as Markdown."""
    parts = []
    for group in table.groups:
        header, rows = _cells(group, metrics)
        first, *others = ([markdown_text(cell) for cell in cells] for cells in (header, *rows))
        lines = [first, ["---"] + ["---:"] * (len(header) - 1), *others]
        drawn = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"**{markdown_text(title(group))}**\n\n{drawn}\n\n{markdown_text(_caption(group))}")
        parts += [markdown_text(line) for line in _advice(group)]
    if len(table.groups) > 1 and table.ranks:
        parts.append(markdown_text(_ranks(table)))
    parts += [f"- {markdown_text(_failure(failure))}" for failure in table.failures]
    return "\n\n".join(parts) + "\n"


def csv_text(table: Table) -> str:
    """The table as CSV: a line for each row of each group, then one for each run without a result.

    Every figure is rounded nowhere. A mean `x` has `x_std` and `x_n` beside it. A text that a spreadsheet would take
    for a formula begins with an apostrophe.
    """
    lines = [
        {"model": group.model, "task": group.task, "metric": group.metric, "state": "finished", **_flat(asdict(row))}
        | ({"study": group.study} if group.study else {})
        for group in table.groups
        for row in group.rows
    ]
    lines += [asdict(failure) for failure in table.failures]
    out = io.StringIO()
    columns = dict.fromkeys(key for line in lines for key in line)
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writerow({name: _harmless(name) for name in columns})
    writer.writerows({key: _harmless(value) for key, value in line.items()} for line in lines)
    return out.getvalue().removesuffix("\n")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Means as three numbers each, lists as text."""
    flat: dict[str, Any] = {}
    for key, value in {**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]}.items():
        if isinstance(value, dict):
            flat |= {key: value["mean"], f"{key}_std": value["std"], f"{key}_n": value["n"]}
        else:
            flat[key] = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return flat


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def _cells(group: Group, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys((group.metric, *metrics)))
    runs = [] if _runs_of_each(group) else ["runs"]
    selects = ["select"] if any(_mean(row.selection_seconds) for row in group.rows) else []
    rows = [_row(row, names, bool(runs), bool(selects)) for row in group.rows]
    return ["strategy", *runs, *map(one_line, names), *selects, *HEADINGS], rows


def _row(row: TableRow, metrics: Sequence[str], show_runs: bool, show_selection: bool) -> list[str]:
    return [
        one_line(row.strategy),
        *([str(len(row.seeds))] if show_runs else []),
        *(_spread(row.metrics.get(name)) for name in metrics),
        *([seconds_text(_mean(row.selection_seconds))] if show_selection else []),
        short_count_text(row.trainable_parameters),
        share_text(row.trainable_share),
        ratio_text(_mean(row.cpu_ratio)),
        seconds_text(_mean(row.train_seconds)),
        ratio_text(_mean(row.time_ratio)),
        ratio_text(row.predicted_flops_ratio),
        bytes_text(_mean(row.peak_memory_bytes)),
        ratio_text(_mean(row.memory_ratio)),
        ratio_text(row.predicted_memory_ratio),
    ]


def title(group: Group) -> str:
    """Name and metric of a group, with what it was before training, as one line."""
    facts = []
    if group.majority_share is not None:
        facts.append(f"majority class {mean_text(group.majority_share)}")
    if group.before is not None:
        facts.append(f"before training {mean_text(group.before.mean)}")
    return one_line(f"{group.name}: {group.metric}" + (f" ({', '.join(facts)})" if facts else ""))


def _caption(group: Group) -> str:
    runs = _runs_of_each(group)
    if runs == 1:
        spread = "One run each"
    else:
        spread = f"Mean ± sample standard deviation over {f'{runs} runs' if runs else 'runs'}"
    measured = f"×: measured, to {group.baseline} with the same seed" if group.baseline else "×: no baseline run"
    selected = any(_mean(row.selection_seconds) for row in group.rows)
    select = " select: time until the plan was chosen." if selected else ""
    return f"{spread}. {measured}. FLOPs, pred. (memory): predicted, to full fine-tuning.{select}"


def _advice(group: Group) -> list[str]:
    """Which strategy to use, and what speaks against trusting that; nothing where there is nothing to compare."""
    advice = advise(group)
    return [] if advice is None else [advice.sentence, *advice.cautions]


def _ranks(table: Table) -> str:
    places = ", ".join(f"{rank.strategy} {rank.rank:.3g}" for rank in table.ranks)
    return f"Mean rank over {len(table.groups)} pairs of model and task (1 is best): {places}"


def _runs_of_each(group: Group) -> int | None:
    """How many runs each row has, if all have as many."""
    counts = {len(row.seeds) for row in group.rows}
    return counts.pop() if len(counts) == 1 else None


def _failure(failure: Failure) -> str:
    if failure.state == "unreadable":
        return one_line(f"no result: {failure.error}")
    place = f"{failure.model} on {failure.task}, {failure.strategy}, seed {failure.seed}"
    return one_line(f"no result: {place}: {failure.error}")


def _mean(value: Mean | None) -> float | None:
    return value.mean if value else None


def _spread(value: Mean | None) -> str:
    return mean_text(value.mean, value.std) if value else mean_text(None)
