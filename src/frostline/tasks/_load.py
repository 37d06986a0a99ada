"""`load_task`: a built-in name, a local file or folder, or a hub data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from frostline.core.cache import LABEL
from frostline.core.errors import ConfigError, DataError, unknown_name
from frostline.core.files import sha256
from frostline.core.row_files import kept_rows
from frostline.rows import (
    SUFFIXES,
    HubSource,
    Rows,
    Stored,
    TaskKind,
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
from frostline.tasks._noise import with_noise
from frostline.tasks._stored import EXAMPLES
from frostline.tasks._task import Split, Task

EVAL_SPLITS = ("dev", "validation", "valid", "eval", "test")
SPLITS: tuple[Split, ...] = ("train", "eval")
MANY_BYTES = 4 * 2**20
"""Files that are larger together have their rows on disk, not in memory."""
FORMAT = 1
"""Of the kept examples. It grows when files of an older version would be read in another way."""
KEPT = ("name", "kind", "metric", "labels", "source", "train_on_prompt", "generate_rows", "notices")
"""What is kept of a task beside its examples."""

Files = tuple[Path, Path | None]
"""The file of the training rows, and that of the evaluation rows."""


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

    `options.noise` changes characters of what is read (`with_noise`).

    Raises `ConfigError` for an unknown name or a wrong option. Raises `DataError` when rows cannot be read, when the
    columns fit no kind of task or more than one, and for the first bad row, with its file and line.
    """
    options = options or TaskOptions()
    return with_noise(_load(name_or_path, options), options.noise, options.seed)


def _load(name_or_path: str, options: TaskOptions) -> Task:
    path = Path(name_or_path)
    if name_or_path in TASKS:
        return replace(TASKS.get(name_or_path)(options), name=name_or_path)
    if path.is_dir() or path.is_file():
        options.refuse(("subset",), "it is for hub data sets: leave it out")
    if path.is_dir():
        files = _of_folder(path, options)
    elif path.is_file() or is_data_file(path):
        options.refuse(("train",), f"{path} already is the training file: leave it out")
        files = (path, None if options.eval is None else Path(options.eval))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path):
        return _of_rows(name_or_path, *_read_data_set(HubSource(name_or_path, options.subset), options), options)
    else:
        raise ConfigError(
            f"{unknown_name('task', name_or_path, TASKS)}; or use the path of a {', '.join(SUFFIXES)} file, or a hub "
            "data set 'owner/name'"
        )
    if sum(file.stat().st_size for file in files if file is not None and file.is_file()) < MANY_BYTES:
        return _of_files(name_or_path, files, options, None)
    return _kept(name_or_path, files, options)


def _of_files(name: str, files: Files, options: TaskOptions, place: Path | None) -> Task:
    """The task, with rows and examples in memory, or in files in the folder `place`."""
    train, evaluation = (None if file is None else read_rows(file, options, place) for file in files)
    assert train is not None
    return _of_rows(name, train, evaluation, options, place)


def _of_rows(name: str, train: Rows, evaluation: Rows | None, options: TaskOptions, place: Path | None = None) -> Task:
    reading = choose_reading(train, options)
    return task_of_rows(Path(name).name.partition(".")[0], train, evaluation, reading, options, name, place)


def _kept(name: str, files: Files, options: TaskOptions) -> Task:
    """The task of large files, whose examples lie in the cache, by the content of the files."""
    before = _times(files)

    def make(place: Path) -> dict[str, Any]:
        with TemporaryDirectory(dir=place) as beside:
            task = _of_files(name, files, options, Path(beside))
            if _times(files) != before:
                raise DataError(f"{name}: it changed while it was read: run again")
            for split in SPLITS:
                part = task.split(split)
                assert isinstance(part, Stored)
                part.save(_file(place, split))
        train, evaluation = (Stored(_file(place, split), EXAMPLES) for split in SPLITS)
        fingerprint = replace(task, train=train, eval=evaluation).fingerprint
        facts = {key: getattr(task, key) for key in KEPT}
        return {"task": facts, "fingerprint": fingerprint, "rows": len(train) + len(evaluation)}

    folder, facts = kept_rows(
        {
            LABEL: f"rows of {Path(name).name}",
            "holds": "examples",
            "format": FORMAT,
            "source": name,
            "files": [None if file is None else [str(file), sha256(file) if file.is_file() else ""] for file in files],
            "options": options.model_dump(mode="json", exclude={"noise"}),
        },
        make,
    )
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in facts["task"].items()
    }
    kind = TaskKind(known.pop("kind"))
    train, evaluation = (Stored(_file(folder, split), EXAMPLES) for split in SPLITS)
    task = Task(kind=kind, train=train, eval=evaluation, **known)
    vars(task)["fingerprint"] = facts["fingerprint"]  # a cached property: what it would find again
    return task


def _times(files: Files) -> list[tuple[int, int]]:
    """Size and last change of the files that there are."""
    found = (file.stat() for file in files if file is not None and file.is_file())
    return [(stat.st_size, stat.st_mtime_ns) for stat in found]


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


def _of_folder(folder: Path, options: TaskOptions) -> Files:
    def file_of(split: str) -> Path:
        file = split_file(folder, split)
        if file is None:
            raise DataError(
                f"{folder}: no file for the split '{split}': use '{split}' with one of {', '.join(SUFFIXES)}"
            )
        return file

    present = [split for split in EVAL_SPLITS if split_file(folder, split)]
    train = options.train or "train"
    evaluation = _eval_split(train, present, options)
    return file_of(train), file_of(evaluation) if evaluation else None


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
