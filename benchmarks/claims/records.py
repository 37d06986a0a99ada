"""The records under docs/results: runs by study, model, task, label and seed."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
Value = Callable[[dict[str, Any]], float | None]
"""A number of a record."""


def metric(name: str) -> Value:
    """A metric after training; where a smaller one is better, with the other sign."""
    sign = -1.0 if name in ("loss", "perplexity") else 1.0

    def value(record: dict[str, Any]) -> float | None:
        found = ((record.get("metrics") or {}).get("after") or {}).get(name)
        return None if found is None else sign * found

    return value


def main_metric(record: dict[str, Any]) -> float | None:
    """The task's main metric after training."""
    return metric(record["data"]["metric"])(record)


def measured(name: str) -> Value:
    """A measured number of a record."""
    return lambda record: (record.get("measured") or {}).get(name)


def predicted(name: str) -> Value:
    """A predicted number of a record."""
    return lambda record: (record.get("predicted") or {}).get(name)


@dataclass(frozen=True)
class Cell:
    """The runs of one label on one model and task, by seed."""

    model: str
    task: str
    label: str
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def values(self, value: Value) -> dict[int, float]:
        found = {seed: value(record) for seed, record in self.runs.items()}
        return {seed: number for seed, number in found.items() if number is not None}

    def mean(self, value: Value) -> float:
        return statistics.mean(self.values(value).values())

    def accuracy(self) -> list[float] | None:
        """The accuracy with each seed, of classes of which the most common one is known."""
        data: Mapping[str, Any] = next(iter(self.runs.values()))["data"]
        known = data["metric"] == "accuracy" and data.get("majority_share") and data.get("eval_rows")
        return list(self.values(metric("accuracy")).values()) if known else None


@dataclass(frozen=True)
class Study:
    """The finished runs of a study. `tasks`: the pairs of model and task that it has when all is run."""

    name: str
    cells: tuple[Cell, ...]
    tasks: int = 0

    def at(self, model: str, task: str, label: str) -> Cell | None:
        return next((cell for cell in self.cells if (cell.model, cell.task, cell.label) == (model, task, label)), None)

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each pair of model and task."""
        return list(dict.fromkeys((cell.model, cell.task) for cell in self.cells))

    def labels(self, model: str, task: str) -> list[str]:
        return [cell.label for cell in self.cells if (cell.model, cell.task) == (model, task)]


def read(name: str, folder: Path = RESULTS) -> Study:
    """The study called `name`: its folders are model / task / label / seed.

    Raises:
        SystemExit: a record is damaged, or is not of the seed that its folder names.
    """
    cells: dict[tuple[str, str, str], Cell] = {}
    for path in sorted((folder / name).glob("*/**/run.json")):
        *_, model, task, label, seed = path.parent.parts
        record = _record(path, seed.removeprefix("seed"))
        if record["status"] == "finished":
            key = (model, task, label)
            cells.setdefault(key, Cell(*key)).runs[int(seed.removeprefix("seed"))] = record
    recipe = folder / name / "study.yaml"
    tasks = 0
    if recipe.exists():
        document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        tasks = len(document["models"]) * len(document["tasks"])
    return Study(name, tuple(cells.values()), tasks)


@functools.cache  # many claims read one study
def _record(path: Path, seed: str) -> dict[str, Any]:
    """A record, or one line about what is wrong with it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if record["status"] == "finished":
            metrics = record["metrics"]["after"]
            if any(isinstance(number, str) for number in metrics.values()) or not isinstance(record["measured"], dict):
                raise ValueError("its metrics or measurements are no numbers")
            if str(record.get("seed", seed)) != seed:
                raise ValueError(f"its seed is {record['seed']}")
        return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SystemExit(f"{path}: not a record of a run: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"a number is {constant}")
