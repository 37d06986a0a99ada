"""What a run cost, beside another run where there is one, and beside the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from frostline.model_card._table import code, markdown_table
from frostline.records import Measured, RunRecord
from frostline.report import bytes_text, ratio_text, seconds_text

Row = tuple[str, Callable[[Measured], float | None], Callable[[float | None], str]]
MEASURED: tuple[Row, ...] = (
    # The time of a resumed run is that of its last process alone.
    ("training", lambda cost: None if cost.was_resumed else cost.train_seconds, seconds_text),
    ("a step", lambda cost: cost.seconds_per_step, seconds_text),
    # Less is the decision alone, without a pass.
    ("caching pass", lambda cost: cost.caching_seconds if cost.caching_seconds >= 0.01 else None, seconds_text),
    ("choosing the plan", lambda cost: cost.selection_seconds or None, seconds_text),
    ("peak memory", lambda cost: cost.peak_memory_bytes, bytes_text),
)
PREDICTED: Mapping[str, str] = {
    "flops_ratio": "operations of a step",
    "run_flops_ratio": "operations of the run",
    "time_ratio": "time",
    "memory_ratio": "memory",
}


def cost_lines(record: RunRecord, beside: RunRecord | None) -> list[str]:
    """The section on cost; empty where nothing was measured.

    Args:
        record: of the run.
        beside: of the run that it is compared with.
    """
    own, other = record.measured, None if beside is None else beside.measured
    if own is None:
        return []
    rows = []
    for name, read, text in MEASURED:
        mine, theirs = read(own), None if other is None else read(other)
        if mine is None and theirs is None:
            continue
        ratio = ratio_text(mine / theirs) if mine is not None and theirs else ratio_text(None)
        rows.append([name, text(mine), *([text(theirs), ratio] if other is not None else [])])
    heading = ["measured", "this run"]
    if beside is not None and other is not None:
        name = str(beside.config.get("strategy") or beside.plan.get("strategy"))
        heading += [f"{code(name)}, same seed", "ratio"]
    lines = ["## Cost", markdown_table(heading, rows)]
    if own.was_resumed:
        lines.append(f"The run was resumed at step {own.resumed_at_step:,}: figures are those of its last process.")
    if shown := _predicted(record.predicted):
        lines.append(f"Predicted, to full fine-tuning: {shown}.")
    if other is None:
        lines.append("No run of full fine-tuning is known to compare it with.")
    return ["\n\n".join(lines)]


def _predicted(predicted: Mapping[str, Any]) -> str:
    known = {what: predicted.get(key) for key, what in PREDICTED.items()}
    return ", ".join(f"{what} {ratio_text(value)}" for what, value in known.items() if value is not None)
