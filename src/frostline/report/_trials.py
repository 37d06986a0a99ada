"""The trials of a run as a figure: held-out loss over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frostline.core.errors import ConfigError
from frostline.core.figures import check_format, figure_text, new_figure, write_figure
from frostline.records import RunRecord

_WON = "#e45756"
_OTHERS = ("#4c78a8", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#bab0ac", "#eeca3b")


def save_trials(record: RunRecord, path: Path) -> None:
    """Draw the held-out loss of every trial of a run over the time of its steps, and how the run went on.

    Args:
        record: of the run.
        path: the file, which ends in .png, .pdf or .svg.

    Raises `ConfigError` for a file name with an unknown ending, and for a run without trials.
    """
    check_format(path)
    if not record.trials:
        raise ConfigError(
            f"--figure: the run made no trials, so {path} was not written: use --strategy auto with --budget time=..."
        )
    figure = new_figure(7, 4.2)
    panel = figure.subplots()
    colors = iter(_OTHERS * len(record.trials))
    for trial in (one for one in record.trials if one["curve"]):
        won = trial["result"] == "won"
        points = trial_points(trial, record)
        label = f"{trial['option']}, {trial['learning_rate']:g}: {trial['result']}"
        panel.plot(
            [seconds for _, seconds, _ in points],
            [loss for *_, loss in points],
            marker="o",
            markersize=4,
            color=_WON if won else next(colors),
            label=figure_text(label),
        )
    panel.set_xlabel(f"seconds of {(record.chosen or {}).get('clock', 'time')}, steps alone")
    panel.set_ylabel("held-out loss")
    panel.set_title(figure_text(f"{Path(record.model.name).name} on {record.data.task}"), fontsize=10)
    panel.legend(fontsize=8)
    write_figure(figure, path)


def trial_points(trial: Mapping[str, Any], record: RunRecord) -> list[tuple[float, float, float]]:
    """Step, seconds and held-out loss of a trial of the run; of the one that won, with what came after it."""
    curve: list[tuple[float, float, float]] = [(step, seconds, loss) for step, seconds, loss in trial["curve"]]
    if trial["result"] != "won" or not curve:
        return curve
    history = record.metrics.history if record.metrics is not None else ()
    after = [(entry["step"], entry["held_out_loss"]) for entry in history if "held_out_loss" in entry]
    return [*curve, *((step, step * trial["step_seconds"], loss) for step, loss in after if step > curve[-1][0])]
