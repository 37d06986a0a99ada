"""Rows that are too many for memory: sequences over Arrow files, which the system maps into memory as they are read.

A codec says how rows become columns. A file is written once and never changed. Small sequences stay lists: both are a
`Sequence`, so that whoever reads rows does not ask where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import pyarrow as pa

BATCH = 1000
"""Rows of a batch of a file: what is read from the disk, and converted, together."""

T = TypeVar("T")
Places = np.ndarray[tuple[int], np.dtype[np.int64]]


class Codec(Protocol[T]):
    """How rows become columns, and back."""

    def write(self, rows: Sequence[T]) -> pa.RecordBatch:
        """A batch of rows. All batches of a file have the same schema."""
        ...

    def read(self, batch: pa.RecordBatch) -> list[T]:
        """The rows of a batch."""
        ...


class Stored(Sequence[T]):
    """The rows of an Arrow file, or some of them.

    Args:
        path: the file.
        codec: that it was written with.
        places: of the rows in the file, in order; None: all.
    """

    def __init__(self, path: Path, codec: Codec[T], places: Places | None = None) -> None:
        self.path, self.codec, self.places = path, codec, places
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = self._file.num_record_batches

    def __reduce__(self) -> Any:
        return Stored, (self.path, self.codec, self.places)

    def __len__(self) -> int:
        return self._size if self.places is None else len(self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return self.some(np.arange(len(self))[index])
        place = range(len(self))[index] if self.places is None else int(self.places[index])
        batch, inside = divmod(place, BATCH)
        return self.codec.read(self._file.get_batch(batch).slice(inside, 1))[0]

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches():
            yield from self.codec.read(batch)

    def some(self, places: Sequence[int] | Places) -> Stored[T]:
        """The rows at these places of this sequence."""
        chosen = np.asarray(places, dtype=np.int64)
        return Stored(self.path, self.codec, chosen if self.places is None else self.places[chosen])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as columns, in order."""
        if self.places is None:
            yield from map(self._file.get_batch, range(self._batches))
            return
        numbers = self.places // BATCH
        ends = np.flatnonzero(np.diff(numbers)) + 1
        for own in np.split(self.places, ends) if len(self.places) else ():
            yield self._file.get_batch(int(own[0] // BATCH)).take(pa.array(own % BATCH))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows."""
        return pa.chunked_array([b.column(name) for b in self.batches()], self._file.schema.field(name).type)

    def save(self, path: Path) -> Stored[T]:
        """Write these rows to a file of their own."""
        return write_batches(_regular(self.batches()), self.codec, path)

    @cached_property
    def _size(self) -> int:
        last = self._batches - 1
        return 0 if last < 0 else last * BATCH + self._file.get_batch(last).num_rows


def _regular(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `BATCH`."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= 64 * BATCH:
            table = pa.Table.from_batches(held).combine_chunks()
            whole = count // BATCH * BATCH
            yield from table.slice(0, whole).to_batches(max_chunksize=BATCH)
            rest = table.slice(whole)
            held, count = rest.to_batches(), rest.num_rows
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches(max_chunksize=BATCH)


def write_batches(batches: Iterable[pa.RecordBatch], codec: Codec[T], path: Path) -> Stored[T]:
    """Write batches of `BATCH` rows each, the last one with fewer, to an Arrow file.

    Args:
        batches: at least one.
        codec: that made them.
        path: the file.
    """
    upcoming = iter(batches)
    first = next(upcoming)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        for batch in chain([first], upcoming):
            writer.write_batch(batch)
    return Stored(path, codec)


def store(rows: Iterable[T], codec: Codec[T], path: Path | None) -> Sequence[T]:
    """The rows as a sequence: an Arrow file at `path`, or a list where that is None, or there is no row.

    Args:
        rows: the rows; of those that are written, `BATCH` are in memory at a time.
        codec: how they are written.
        path: the file.
    """
    if path is None:
        return list(rows)
    upcoming = iter(rows)
    first = list(islice(upcoming, BATCH))
    if not first:
        return first
    chunks = chain([first], iter(lambda: list(islice(upcoming, BATCH)), []))
    return write_batches(map(codec.write, chunks), codec, path)


def chunks_of(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows in order, so many together as are in memory at a time: all of a list."""
    if isinstance(rows, Stored):
        for batch in rows.batches():
            yield rows.codec.read(batch)
    elif rows:
        yield rows


def some_of(rows: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The rows at some places, stored as `rows` are."""
    return rows.some(places) if isinstance(rows, Stored) else [rows[place] for place in places]


def values_of(rows: Sequence[T], column: str, value: Callable[[T], Any]) -> Iterator[Any]:
    """One value of each row, without the rest of the row where it lies in a file.

    Args:
        rows: the rows.
        column: the value's column in a file.
        value: gives it for a row in memory.
    """
    if isinstance(rows, Stored):
        for batch in rows.batches():
            yield from batch.column(column).to_pylist()
    else:
        yield from map(value, rows)
