"""`load_task`: a built-in name, a local file or folder, or a hub data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from frostline.core.errors import ConfigError, DataError, unknown_name
from frostline.rows import (
    SUFFIXES,
    HubSource,
    Rows,
    TaskOptions,
    choose_reading,
    hub_rows,
    is_data_file,
    read_hub,
    read_rows,
    split_file,
)
from frostline.tasks._build import task_of_rows
from frostline.tasks._catalog import TASKS
from frostline.tasks._task import Task

EVAL_SPLITS = ("dev", "validation", "valid", "eval", "test")


def load_task(name_or_path: str, options: TaskOptions | None = None) -> Task:
    """Read a task.

    `name_or_path` is the first of these that fits:

    - a built-in name (see `TASKS`), read from `$FROSTLINE_DATA` when that is set, else from the hub;
    - a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file (or one of the first four with `.gz`), with `options.eval`
      as the evaluation file; or a folder with a file for each split, such as `train.jsonl` and `dev.jsonl`;
    - a hub data set, `owner/name`.

    For a file, a folder or a hub data set, the columns say what kind of task it is, and `Task.notices` says how they
    were read. Columns with other names are mapped by `options.columns`. Without an evaluation split, a seeded share of
    the training rows is held out.

    Raises `ConfigError` for an unknown name or a wrong option. Raises `DataError` when rows cannot be read, when the
    columns fit no kind of task or more than one, and for the first bad row, with its file and line.
    """
    options = options or TaskOptions()
    path = Path(name_or_path)
    if name_or_path in TASKS:
        return replace(TASKS.get(name_or_path)(options), name=name_or_path)
    if path.is_dir() or path.is_file():
        options.refuse(("subset",), "it is for hub data sets: leave it out")
    if path.is_dir():
        train, evaluation = _read_folder(path, options)
    elif path.is_file() or is_data_file(path):
        train, evaluation = _read_files(path, options)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        train, evaluation = _read_data_set(HubSource(name_or_path, options.subset), options)
    else:
        raise ConfigError(
            f"{unknown_name('task', name_or_path, TASKS)}; or use the path of a {', '.join(SUFFIXES)} file, or a hub "
            "data set 'owner/name'"
        )
    reading = choose_reading(train, options)
    return task_of_rows(path.name.partition(".")[0], train, evaluation, reading, options, name_or_path)


def _read_files(path: Path, options: TaskOptions) -> tuple[Rows, Rows | None]:
    options.refuse(("train",), f"{path} already is the training file: leave it out")
    return read_rows(path, options), None if options.eval is None else read_rows(Path(options.eval), options)


def _read_folder(folder: Path, options: TaskOptions) -> tuple[Rows, Rows | None]:
    def read(split: str) -> Rows:
        file = split_file(folder, split)
        if file is None:
            raise DataError(
                f"{folder}: no file for the split '{split}': use '{split}' with one of {', '.join(SUFFIXES)}"
            )
        return read_rows(file, options)

    present = [split for split in EVAL_SPLITS if split_file(folder, split)]
    train = options.train or "train"
    evaluation = _eval_split(train, present, options)
    return read(train), read(evaluation) if evaluation else None


def _read_data_set(source: HubSource, options: TaskOptions) -> tuple[Rows, Rows | None]:
    options.refuse(("delimiter", "quotes", "encoding"), "it is for files: leave it out")
    datasets = read_hub(source, f"give an existing file: there is no '{source.path}' here")
    train = options.train or "train"
    evaluation = _eval_split(train, list(datasets), options)
    return (
        hub_rows(source, datasets, train),
        hub_rows(source, datasets, evaluation) if evaluation else None,
    )


def _eval_split(train: str, present: Sequence[str], options: TaskOptions) -> str | None:
    """The evaluation split: that of the options, else the first usual one that is there, else None."""
    usual = (split for split in EVAL_SPLITS if split in present and split != train)
    return options.eval or next(usual, None)
