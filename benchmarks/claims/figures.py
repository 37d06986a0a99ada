"""Figures of docs/claims.md, drawn from the records: one SVG file each, the same bytes for the same records."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from claims import equal
from claims.records import ROOT, Cell, Value, main_metric, metric, read

FOLDER = ROOT / "docs" / "figures"
LOOK = {"svg.hashsalt": "claims", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False}
LOOK |= {"axes.spines.right": False, "figure.constrained_layout.use": True}
SENSITIVITY = {
    "000-sensitivity-rate": ("learning rate", True),
    "000-sensitivity-share": ("training rows", False),
    "000-sensitivity-length": ("maximum length, tokens", True),
    "000-sensitivity-noise": ("share of characters changed", False),
}


def draw() -> list[tuple[str, str]]:
    """Draw every figure that there are records for; gives file names and captions."""
    FOLDER.mkdir(exist_ok=True)
    found = []
    plt.switch_backend("agg")
    with plt.rc_context(LOOK):
        for name, (caption, make) in FIGURES.items():
            if (figure := make()) is not None:
                _save(figure, FOLDER / f"claims-{name}.svg")
                found.append((f"claims-{name}.svg", caption))
    return found


def settings(name: str = "001-table-minilm") -> Any:
    """A panel for each task: accuracy of every setting, with that of `all` as a band."""
    study = read(name)
    if not study.cells:
        return None
    size = (7, 0.4 + 1.6 * len(study.places))
    figure, panels = plt.subplots(len(study.places), 1, figsize=size, squeeze=False)
    for panel, (model, task) in zip(panels[:, 0], study.places, strict=True):
        labels = study.labels(model, task)
        whole = study.at(model, task, "all")
        for at, label in enumerate(sorted(labels, key=_order)):
            values = _values(study.at(model, task, label), main_metric)
            panel.errorbar(at, statistics.mean(values), yerr=_deviation(values), fmt="o", markersize=3, color="C0")
        if whole:
            values = _values(whole, main_metric)
            mean, apart = statistics.mean(values), _deviation(values)
            panel.axhspan(mean - apart, mean + apart, alpha=0.15, color="C1", linewidth=0)
            panel.axhline(mean, color="C1", linewidth=0.8)
        panel.set_ylabel(task)
        panel.set_xticks(range(len(labels)), sorted(labels, key=_order), rotation=60, ha="right")
    return figure


def speed(name: str = "001-table-minilm") -> Any:
    """A panel for each task: how fast a setting learns in ten steps, and how good it is in the end."""
    study = read(name)
    if not study.cells:
        return None
    figure, panels = plt.subplots(1, len(study.places), figsize=(7, 2.4), squeeze=False)
    for panel, (model, task) in zip(panels[0], study.places, strict=True):
        for label in study.labels(model, task):
            cell = study.at(model, task, label)
            x, y = statistics.mean(_values(cell, first_steps)), statistics.mean(_values(cell, main_metric))
            panel.plot(x, y, "o", markersize=3, color="C1" if label == "all" else "C0")
            panel.annotate(label, (x, y), fontsize=5)
        panel.set_title(task)
        panel.set_xlabel("training loss, steps 1 to 10")
    panels[0, 0].set_ylabel("accuracy")
    return figure


def first_steps(record: dict[str, Any]) -> float | None:
    """The mean training loss of the first ten steps."""
    return next((one["loss"] for one in record["metrics"]["history"] if one.get("step") == 10 and "loss" in one), None)


def equal_time() -> Any:
    """A panel for each model and task: the quality of each plan in each share of the time."""
    names = [name for name in equal.names() if equal.best(read(name))]
    if not names:
        return None
    figure, panels = plt.subplots(1, len(names), figsize=(2.2 * len(names) + 1, 2.6), squeeze=False)
    plans = {"all": "C0"}
    for panel, name in zip(panels[0], names, strict=True):
        cells = equal.best(read(name))
        for plan in dict.fromkeys(plan for plan, _ in cells):
            points = sorted((share, cell) for (one, share), cell in cells.items() if one == plan and share < 1)
            values = [statistics.mean(_values(cell, equal.value(cell))) for _, cell in points]
            colour = plans.setdefault(plan, f"C{len(plans)}")
            panel.plot([share for share, _ in points], [abs(one) for one in values], "o-", markersize=3, color=colour)
        if whole := cells.get(("all", 1.0)):
            panel.axhline(abs(whole.mean(equal.value(whole))), color=plans["all"], linewidth=0.8, linestyle=":")
        panel.set_title(name.removeprefix("equal-time-"))
        panel.set_xlabel("share of the time")
        panel.set_xlim(0, 1)
    panels[0, 0].set_ylabel("loss (base16), accuracy (MiniLM)")
    handles = [plt.Line2D([], [], color=colour, marker="o", markersize=3) for colour in plans.values()]
    figure.legend(handles, list(plans), loc="outside right upper")
    return figure


def sensitivity() -> Any:
    """A panel for each study: held-out loss of each strategy over what is changed."""
    studies = {name: study for name in SENSITIVITY if (study := read(name)).cells}
    if not studies:
        return None
    figure, panels = plt.subplots(1, len(studies), figsize=(2.2 * len(studies) + 1, 2.6), squeeze=False)
    for panel, (name, study) in zip(panels[0], studies.items(), strict=True):
        label, logarithmic = SENSITIVITY[name]
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in study.cells:
            strategy, _, at = cell.label.partition("-")
            lines.setdefault(strategy, []).append((float(at), -cell.mean(metric("loss"))))
        for number, (strategy, points) in enumerate(sorted(lines.items())):
            panel.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, color=f"C{number}", label=strategy)
        if logarithmic:
            panel.set_xscale("log")
        panel.set_xlabel(label)
    panels[0, 0].set_ylabel("held-out loss")
    panels[0, 0].legend(fontsize=6)
    return figure


FIGURES: dict[str, tuple[str, Callable[[], Any]]] = {
    "settings": (
        "Accuracy of paper 001's settings: means and standard deviations over seeds; the band is that of full "
        "fine-tuning.",
        settings,
    ),
    "speed": (
        "Learning speed against quality: the training loss of the first ten steps, and the accuracy in the end; a "
        "point is a setting.",
        speed,
    ),
    "equal-time": (
        "Quality in the same processor time, a share of full fine-tuning's; each plan at its best rate; the dotted "
        "line is full fine-tuning in all of its time.",
        equal_time,
    ),
    "sensitivity": ("Sensitivity (base16, webnlg, one seed a point): held-out loss.", sensitivity),
}


def _order(label: str) -> tuple[int, str]:
    return ("all", "lora").index(label) if label in ("all", "lora") else 2, label


def _values(cell: Cell | None, value: Value) -> list[float]:
    assert cell is not None
    return list(cell.values(value).values())


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
