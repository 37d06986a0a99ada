"""Rows of local files, each with its file and line, for messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from frostline.core.errors import DataError


class Row(NamedTuple):
    """The values of a row, by column, and its place as `file:line`."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Rows:
    """The rows of one split, at least one. `origin` is the file or the hub split that they are from."""

    origin: str
    rows: Sequence[Row]


def read_rows(path: Path) -> Rows:
    """All rows of a `.jsonl`, `.csv`, `.tsv` or `.parquet` file.

    Raises `DataError` for a file that is missing, empty or of another format, and for a row that cannot be read, with
    its line, counted from 1 (in a CSV file the row's first line, in a Parquet file the row's number).
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file format: use a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"data file {'is a folder' if path.is_dir() else 'not found'}: {path}")
    rows = list(reader(path))
    if not rows:
        raise DataError(f"{path}: the file has no rows: add at least one")
    return Rows(str(path), rows)


def split_file(folder: Path, split: str) -> Path | None:
    """The data file of a split in a folder, such as `train.jsonl`; None where there is none."""
    files = (folder / f"{split}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: a row must be a JSON object, found {kind_of(values)}")
        yield Row(values, where)


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{where}: not a CSV row: {error}") from None
        if not fields:
            continue
        if header is None:
            header = fields
            if repeated := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{where}: the header has the column '{repeated[0]}' twice: rename one of them")
        elif len(fields) != len(header):
            raise DataError(f"{where}: the row has {len(fields)} field(s), but the header has {len(header)}")
        else:
            yield Row(dict(zip(header, fields, strict=True)), where)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(values, f"{path}:row {number}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 text: {error.reason}") from None


def kind_of(value: object) -> str:
    """The type of a value, in plain words."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": lambda path: _read_csv(path, delimiter="\t"),
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
