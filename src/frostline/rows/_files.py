"""Rows of local files, each with its file and line, for messages."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa

from frostline.core.documents import KeyTwice, once
from frostline.core.errors import ConfigError, DataError, first_line
from frostline.rows._csv import csv_rows
from frostline.rows._options import TaskOptions
from frostline.rows._stored import store

ESCAPED = re.compile("[\udc80-\udcff]")


class Row(NamedTuple):
    """The values of a row, by column, and its place as `file:line`."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Rows:
    """The rows of one split, at least one.

    Attributes:
        origin: the file or the hub split that they are from.
        rows: the rows.
        seen: their columns, where they are known already.
    """

    origin: str
    rows: Sequence[Row]
    seen: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that any row has, in the order of their first appearance."""
        return self.seen or tuple(dict.fromkeys(column for row in self.rows for column in row.values))


class _AsText:
    """Rows as columns: the values as JSON, since a row may lack columns, or have other types than the row before."""

    schema = pa.schema([("values", pa.large_string()), ("where", pa.large_string())])

    def write(self, rows: Sequence[Row]) -> pa.RecordBatch:
        return pa.record_batch([[json.dumps(r.values) for r in rows], [r.where for r in rows]], schema=self.schema)

    def read(self, batch: pa.RecordBatch) -> list[Row]:
        texts, places = (column.to_pylist() for column in batch.columns)
        return [Row(json.loads(text), where) for text, where in zip(texts, places, strict=True)]


def read_rows(path: Path, options: TaskOptions | None = None, place: Path | None = None) -> Rows:
    """All rows of a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file; all but the last may end in `.gz` too.

    Args:
        path: the file.
        options: how it is read.
        place: a folder for the rows as they are read, where they are too many for memory; None: they are a list. Those
            of a Parquet file are a list in any case, since they may have values that JSON does not know.

    Raises `DataError` for a file that is missing, empty or of another format, and for a row that cannot be read, with
    its line, counted from 1 (in a CSV file the row's first line; the row's number in a Parquet file and a JSON array).
    """
    options = options or TaskOptions()
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise DataError(f"{path}: unknown file format: use a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"data file {'is a folder' if path.is_dir() else 'not found'}: {path}")
    if reader is not _read_csv:
        options.refuse(("delimiter", "quotes"), "it is for CSV files: leave it out")
    if reader is _read_parquet:
        options.refuse(("encoding",), "it is for text files: leave it out")
    columns: dict[str, None] = {}

    def noted(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            columns.update(dict.fromkeys(row.values))
            yield row

    try:
        spool = None if place is None or reader is _read_parquet else place / f"{len(list(place.iterdir()))}.rows"
        rows = store(noted(reader(path, options)), _AsText(), spool)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}: write it again") from None
    except RecursionError:
        raise DataError(f"{path}: not JSON: it is nested too deeply: use flat rows") from None
    if not rows:
        raise DataError(f"{path}: the file has no rows: add at least one")
    return Rows(str(path), rows, tuple(columns))


def is_data_file(path: Path) -> bool:
    """Whether the name of a file is that of a format that can be read."""
    return _suffix(path) in _READERS


def split_file(folder: Path, split: str) -> Path | None:
    """The data file of a split in a folder, such as `train.jsonl`; None where there is none."""
    files = (folder / f"{split}{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix if not name.endswith(".parquet.gz") else ".parquet.gz"


def _read_json(path: Path, options: TaskOptions) -> Iterator[Row]:
    lines = _lines(path, options.encoding)
    start = next(((number, line) for number, line in lines if line.strip()), None)
    if start is None:
        return
    if start[1].lstrip().startswith("[") or _suffix(path) == ".json":
        rest = [*chain([start], lines)]
        text = "\n" * (start[0] - 1) + "".join(line for _, line in rest)
        try:
            json.loads(text)  # JSON lines are found out before a key that is twice: the message then has its line
            values = _loads(text)
        except KeyTwice as error:
            raise DataError(f"{path}{_place_of_twice(text)}: {error}") from None
        except ValueError as error:
            # JSON lines are often in a file that ends in .json.
            if not start[1].lstrip().startswith("{") or "Extra data" not in str(error):
                place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{path}{place}: {_not_json(error)}") from None
            lines = iter(rest)
        else:
            yield from _json_rows(values, path)
            return
    else:
        lines = chain([start], lines)
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = _loads(line.rstrip())
        except KeyTwice as error:
            raise DataError(f"{where}: {error}") from None
        except ValueError as error:
            raise DataError(f"{where}: {_not_json(error)}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row must be a JSON object, found {kind_of(row)}")
        yield Row(row, where)


_JSON = json.JSONDecoder(object_pairs_hook=once)


def _loads(text: str) -> Any:
    """The value of a JSON text. Raises `KeyTwice` where an object has a key twice."""
    return _JSON.decode(text)


def _place_of_twice(text: str) -> str:
    """The line of the row with a key twice, in an array of rows; nothing in another document."""
    place = text.find("[") + 1
    if text[:place].strip() != "[":
        return ""
    while True:
        while text[place] in " \t\r\n,":
            place += 1
        try:
            place = _JSON.raw_decode(text, place)[1]
        except KeyTwice:
            return f":{text.count(chr(10), 0, place) + 1}"


def _not_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return f"not JSON: {first_line(error).partition(';')[0]}"


def _json_rows(values: Any, path: Path) -> Iterator[Row]:
    """The rows of a whole JSON document: an array of objects, alone or as the one such value of an object; or an object
    with a list (or an object) of equally many values for each column."""
    if isinstance(values, dict):
        tables = [value for value in values.values() if _is_table(value)]
        parts = [list(part.values()) if isinstance(part, dict) else part for part in values.values()]
        if len(tables) == 1:
            values = _squad(tables[0])
        elif not tables and parts and all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            values = [dict(zip(values, row, strict=True)) for row in zip(*parts, strict=True)]
        elif len(tables) > 1:
            raise DataError(f"{path}: it has several lists of rows: write each of them to a file of its own")
        else:
            values = [values]
    for number, row in enumerate(values if isinstance(values, list) else [values], start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}:row {number}: a row must be a JSON object, found {kind_of(row)}")
        yield Row(row, f"{path}:row {number}")


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _squad(articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question, where the file is in SQuAD's own form (article, paragraphs, questions)."""
    if not all(_is_table(article.get("paragraphs")) for article in articles):
        return articles
    return [
        {"context": paragraph.get("context"), **question}
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph.get("qas", [])
    ]


def _read_csv(path: Path, options: TaskOptions) -> Iterator[Row]:
    tab = _suffix(path) == ".tsv"
    for line, values in csv_rows(path, (line for _, line in _lines(path, options.encoding)), options, tab=tab):
        yield Row(values, f"{path}:{line}")


def _read_parquet(path: Path, options: TaskOptions) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path, page_checksum_verification=True).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: not a Parquet file: {first_line(error)}") from None
    for number, values in enumerate(rows, start=1):
        yield Row(values, f"{path}:row {number}")


def _lines(path: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file, each with its end. A byte order mark says the encoding, else it is UTF-8."""
    # Bytes that are not UTF-8 become half surrogates, so that the message can say the line.
    known = {"encoding": encoding} if encoding else {"encoding": "utf-8-sig", "errors": "surrogateescape"}
    with _opened(path, "rb") as raw:
        if not encoding and raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            known = {"encoding": "utf-16"}
    try:
        with _opened(path, "rt", newline="", **known) as file:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise DataError(f"{path}:{number}: it has NUL bytes: save the file as UTF-8 text")
                if not line.isascii() and ESCAPED.search(line):
                    raise DataError(f"{path}:{number}: {_not_utf8(line)}")
                yield number, line
    except UnicodeError as error:
        raise DataError(f"{path}: not {known['encoding']} text: {error}: use another data.encoding") from None
    except LookupError as error:
        raise ConfigError(f"data.encoding: {str(error).partition(';')[0]}: use for example cp1252 or utf-16") from None


def _opened(path: Path, mode: str, **options: str) -> IO[Any]:
    """The file, unpacked where it ends in `.gz`."""
    opener = cast("Callable[..., IO[Any]]", gzip.open if path.suffix.lower() == ".gz" else open)
    return opener(path, mode, **options)


def _not_utf8(line: str) -> str:
    data = line.encode("utf-8", "surrogateescape")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        before, after = re.split(rb"\W", data[: error.start])[-1], re.split(rb"[\x00-/:-@]", data[error.start :])[0]
        word = (before[-20:] + after[:20]).decode("cp1252", "replace")
        return f"not UTF-8 text: {error.reason}: use data.encoding=cp1252 if '{word}' is right, or the file's own"
    raise AssertionError("the line is UTF-8")


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


_READERS: Mapping[str, Callable[[Path, TaskOptions], Iterator[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
