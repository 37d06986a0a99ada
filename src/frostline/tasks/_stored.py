"""How examples and encoded rows lie in Arrow files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from frostline.core.labels import IGNORED
from frostline.rows import Stored
from frostline.tasks._task import Example, Message

PLAIN = {"id": pa.large_string(), "text": pa.large_string(), "pair": pa.large_string(), "label": pa.int64(),
         "target": pa.large_string(), "value": pa.float64()}  # fmt: skip
"""The fields of an example that have a column each. The others, which most tasks do not have, are JSON in one."""
FIRST = tuple(PLAIN)[:5]
"""Those that an example begins with, so that they need no names."""
OTHERS = {own.name: own.default for own in fields(Example) if own.name not in PLAIN and own.default is not MISSING}


class _Examples:
    """Examples as columns, one for each plain field, and `others`."""

    schema = pa.schema([*PLAIN.items(), ("others", pa.large_string())])

    def write(self, rows: Sequence[Example]) -> pa.RecordBatch:
        columns = [[getattr(row, name) for row in rows] for name in PLAIN]
        return pa.record_batch([*columns, [_others(row) for row in rows]], schema=self.schema)

    def read(self, batch: pa.RecordBatch) -> list[Example]:
        if all(batch.column(name).null_count == batch.num_rows for name in ("value", "others")):
            return list(map(Example, *(batch.column(name).to_pylist() for name in FIRST)))
        *plain, others = (batch.column(name).to_pylist() for name in (*PLAIN, "others"))
        return [
            Example(**dict(zip(PLAIN, values, strict=True)), **({} if more is None else _read_others(more)))
            for more, *values in zip(others, *plain, strict=True)
        ]


EXAMPLES = _Examples()


_usual, _others_of = tuple(OTHERS.values()), attrgetter(*OTHERS)


def _others(example: Example) -> str | None:
    if _others_of(example) == _usual:
        return None
    own = {name: value for name, usual in OTHERS.items() if (value := getattr(example, name)) != usual}
    return json.dumps(own)


def _read_others(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    for name, value in found.items():
        if name == "messages":
            found[name] = tuple(Message(*one) for one in value)
        elif name == "answers":
            found[name] = tuple((answer, start) for answer, start in value)
        elif isinstance(value, list):
            found[name] = tuple(value)
    return found


FIGURES = ("length", "labels_count", "counted", "counted_after_first", "largest")
"""Numbers of a row that are asked of all rows: see `figures`."""
MARK = "#"
"""Begins the names of the columns of figures."""


def figures(row: Mapping[str, Any]) -> tuple[int, int, int, int, int]:
    """The numbers of an encoded row by which it is chosen, counted and checked, in the order of `FIGURES`.

    Tokens (of its longest text, where it has several); labels of tokens, -1 where it has others; those of them that the
    loss counts; the same without the first one; the largest id, of labels too, -1 where there is none.
    """
    ids, labels = row.get("input_ids") or [], row.get("labels")
    texts = ids if ids and isinstance(ids[0], list) else [ids]
    largest = max((max(text) for text in texts if text), default=-1)
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels[:1]):
        return max(map(len, texts)), -1, 0, 0, largest
    counted = len(labels) - labels.count(IGNORED)
    first = bool(labels) and labels[0] != IGNORED
    return max(map(len, texts)), len(labels), counted, counted - first, max(largest, *labels, -1)


class Encoding:
    """Encoded rows as columns: the model's inputs, and the figures of each row.

    Args:
        schema: the columns of every row, and those of its figures.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.names = [name for name in schema.names if not name.startswith(MARK)]

    @classmethod
    def like(cls, row: Mapping[str, Any]) -> Encoding:
        """For rows with the columns of `row`, and values of the same types."""
        own = [(name, _type_of(value)) for name, value in row.items()]
        return cls(pa.schema([*own, *((MARK + name, pa.int32()) for name in FIGURES)]))

    @classmethod
    def of(cls, path: Path) -> Encoding:
        """That of a file."""
        with pa.memory_map(str(path)) as file:
            return cls(pa.ipc.open_file(file).schema)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        columns = [[row[name] for row in rows] for name in self.names]
        return pa.record_batch([*columns, *zip(*map(figures, rows), strict=True)], schema=self.schema)

    def read(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        columns = [_values(batch.column(name)) for name in self.names]
        return [dict(zip(self.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, list):
        return pa.large_list(_type_of(value[0]) if value else pa.int32())
    return {str: pa.large_string(), float: pa.float64()}.get(type(value), pa.int32())


def _values(column: pa.Array) -> list[Any]:
    """The Python values of a column. Lists are cut from one list of all values, which is five times as fast."""
    if not pa.types.is_large_list(column.type) or column.null_count:
        return list(column.to_pylist())
    ends = column.offsets.to_pylist()
    every = _values(column.values.slice(ends[0], ends[-1] - ends[0]))
    return [every[begin - ends[0] : end - ends[0]] for begin, end in pairwise(ends)]


def stored_figure(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """One of `FIGURES` of every row in a file, as an array."""
    assert isinstance(rows, Stored)
    return rows.column(MARK + name).to_numpy()


def texts_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    """The token ids of every text of the rows, in order."""
    for row in rows:
        ids = row["input_ids"]
        yield from ids if isinstance(ids[0], list) else [ids]
