"""From a study to the runs that it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from frostline.core.errors import ConfigError
from frostline.core.places import check_folder_name, portable_name
from frostline.plan import load_plan
from frostline.run import RunConfig, read_config
from frostline.strategies import parse_name
from frostline.study._config import StudyConfig, StudyStrategy

SET_BY_THE_GRID = ("model", "task", "strategy", "seed", "out")
DATA_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
PLAN_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Cell:
    """One run of a study, and the label of its row."""

    label: str
    config: RunConfig

    @property
    def folder(self) -> Path:
        return self.config.folder


def cells(study: StudyConfig, out: Path) -> list[Cell]:
    """Every run of the study, with its folder `<out>/<model>/<task>/<label>/seed<seed>`.

    All strategies of one seed come before the next seed, so that an interrupted study still compares runs of the same
    seeds. Raises `UserError` for an unknown strategy or setting.
    """
    for strategy in study.strategies:
        _check_strategy(strategy.name)
    models, tasks = _folder_names(study.models), _folder_names(study.tasks)
    grid = product(study.models, study.tasks, study.every_seed, study.strategies)
    found = [
        Cell(
            strategy.row,
            read_config(
                None,
                **_settings(study, strategy),
                model=model,
                task=task,
                strategy=strategy.name,
                seed=seed,
                out=str(out / models[model] / tasks[task] / strategy.row / f"seed{seed}"),
            ),
        )
        for model, task, seed, strategy in grid
        if seed in study.seeds_of(strategy)
    ]
    for cell in found:
        check_folder_name(cell.folder)
    return found


def _check_strategy(name: str) -> None:
    if name.endswith(PLAN_SUFFIXES):
        load_plan(Path(name))
    else:
        parse_name(name)


def _settings(study: StudyConfig, strategy: StudyStrategy) -> dict[str, Any]:
    for where, given in (("config", study.config), (f"strategy '{strategy.row}'", strategy.settings)):
        for key in SET_BY_THE_GRID:
            if key in given:
                raise ConfigError(f"study: {where}: the study itself sets '{key}' for each run: leave it out")
    return _over(study.config, strategy.settings)


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with the settings of `upper` in place of its own, group by group."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _folder_names(names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each: the last component of its path, or the whole path where two share that.

    Raises `ConfigError` when two names are still the same.
    """
    shared = {last for last, count in Counter(map(_last, names)).items() if count > 1}
    chosen = {name: name if _last(name) in shared else _last(name) for name in names}
    folders = {name: portable_name(text) for name, text in chosen.items()}
    if len({folder.casefold() for folder in folders.values()}) < len(names):
        raise ConfigError(f"study: {', '.join(names)} would share a folder: rename one of them")
    return folders


def _last(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix in DATA_SUFFIXES else path.name
