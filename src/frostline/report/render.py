"""A table for the terminal, as Markdown, and as a JSON document. All three show the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from frostline.report.format import bytes_text, count_text, mean_text, ratio_text, seconds_text, share_text
from frostline.report.table import Failure, Group, Mean, Row, Table

HEADINGS = (
    "trained",
    "of all",
    "s/step",
    "time",
    "memory",
    "time ×",
    "FLOPs × pred.",
    "memory ×",
    "memory × pred.",
)


def document(table: Table) -> dict[str, Any]:
    """The table as plain data for JSON: every figure of every row, rounded nowhere."""
    return asdict(table)


def view(table: Table, metrics: Sequence[str] = ()) -> list[RenderableType]:
    """The table for the terminal: one per model and task, then a line for each run without a result.

    `metrics` are shown beside the headline one.
    """
    shown: list[RenderableType] = []
    for group in table.groups:
        drawn = RichTable(title=escape(_title(group)), caption=_caption(group), title_justify="left")
        header, rows = _cells(group, metrics)
        for number, heading in enumerate(header):
            drawn.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number == 0)
        for cells in rows:
            drawn.add_row(*map(escape, cells))
        shown.append(drawn)
    shown += [Text(_failure(failure), style="red") for failure in table.failures]
    return shown


def markdown(table: Table, metrics: Sequence[str] = ()) -> str:
    """The table as Markdown."""
    parts = []
    for group in table.groups:
        header, rows = _cells(group, metrics)
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        drawn = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"**{_title(group)}**\n\n{drawn}\n\n{_caption(group)}")
    parts += [f"- {_failure(failure)}" for failure in table.failures]
    return "\n\n".join(parts) + "\n"


def _cells(group: Group, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys((group.metric, *metrics)))
    return ["strategy", "n", *names, *HEADINGS], [_row(row, names) for row in group.rows]


def _row(row: Row, metrics: Sequence[str]) -> list[str]:
    return [
        row.strategy,
        str(len(row.seeds)),
        *(_spread(row.metrics.get(name)) for name in metrics),
        count_text(row.trainable_parameters),
        share_text(row.trainable_share),
        f"{row.seconds_per_step.mean:.3g}" if row.seconds_per_step else ratio_text(None),
        seconds_text(_mean(row.train_seconds)),
        bytes_text(_mean(row.peak_memory_bytes)),
        ratio_text(_mean(row.time_ratio)),
        ratio_text(row.predicted_flops_ratio),
        ratio_text(_mean(row.memory_ratio)),
        ratio_text(row.predicted_memory_ratio),
    ]


def _title(group: Group) -> str:
    facts = []
    if group.majority_share is not None:
        facts.append(f"majority class {mean_text(group.majority_share)}")
    if group.before is not None:
        facts.append(f"before training {mean_text(group.before.mean)}")
    return f"{group.model} on {group.task}: {group.metric}" + (f" ({', '.join(facts)})" if facts else "")


def _caption(group: Group) -> str:
    several = any(len(row.seeds) > 1 for row in group.rows)
    spread = "Mean ± sample standard deviation over n runs. " if several else ""
    measured = f"× measured: to {group.baseline}, paired by seed" if group.baseline else "× measured: no baseline run"
    return f"{spread}{measured}; × pred.: predicted, to full fine-tuning."


def _failure(failure: Failure) -> str:
    place = f"{failure.model} on {failure.task}, {failure.strategy}, seed {failure.seed}"
    return f"no result: {place}: {failure.error}"


def _mean(value: Mean | None) -> float | None:
    return value.mean if value else None


def _spread(value: Mean | None) -> str:
    return mean_text(value.mean, value.std) if value else mean_text(None)
