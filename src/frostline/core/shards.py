"""A shard of an activation cache as a file: what its header says, and the bytes of its rows. Imports no torch.

A shard is a safetensors file. Its header holds the keys, lengths and checksums (CRC-32) of its rows; its name is the
SHA-256 of its header. So a shard is verified without reading its rows: name and size when it is opened, each row when
it is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import weakref
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from frostline.core.documents import parse_json
from frostline.core.errors import FrostlineError

HEADER = "rows"
"""The entry of a shard's metadata that names its cache, and its rows with their lengths and checksums."""


class DamagedShard(FrostlineError):
    """A file is not the shard that its name says; the message is what is wrong with it."""


class ShardFile:
    """An open shard, whose header is verified.

    It stays open, so its rows can be read after it was removed. Only where a process may not have so many files open,
    it is opened for each row. A row is compared with its checksum whenever it is read: where the file was overwritten
    or cut off in place, the row is damaged, and never has other states.

    Attributes:
        keys: of its rows.
        path: where it was opened.

    Raises `FileNotFoundError` when there is no such file, and `DamagedShard`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, stays = _open(path)
        closing = weakref.finalize(self, os.close, self._file)
        try:
            self._read_header()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DamagedShard("its header cannot be read") from error
        if not stays:
            closing()
            self._file = -1

    def _read_header(self) -> None:
        size = os.fstat(self._file).st_size
        first = _read(self._file, 0, 8)
        start = 8 + int.from_bytes(first, "little")
        text = _read(self._file, 8, min(start, size) - 8) if len(first) == 8 <= size else bytearray()
        if len(text) != start - 8 or hashlib.sha256(first + text).hexdigest() != self.path.stem:
            raise DamagedShard("its header does not match the checksum in its name")
        tensors = parse_json(bytes(text))
        header = parse_json(tensors.pop("__metadata__")[HEADER])
        ends = {name: start + tensor["data_offsets"][1] for name, tensor in tensors.items()}
        if size != max(ends.values()):
            raise DamagedShard(f"it has {size:,} bytes and not {max(ends.values()):,}")
        if header["store"] != self.path.parent.name:
            raise DamagedShard("it was not written for this cache")
        self.keys: tuple[str, ...] = tuple(header["keys"])
        self._checksums = {name: array("I", header["checksums"][name]) for name in tensors}
        self._bounds = {
            name: _bounds(header["lengths"][name], start + tensor["data_offsets"][0], ends[name])
            for name, tensor in tensors.items()
        }

    def row(self, index: int) -> dict[str, bytearray] | None:
        """The bytes of a row, by stream; None where they are damaged."""
        file, found = self._file, {}
        if file < 0:
            try:
                file = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                return None
        try:
            for name, bounds in self._bounds.items():
                found[name] = _read(file, bounds[index], bounds[index + 1] - bounds[index])
                if zlib.crc32(found[name]) != self._checksums[name][index]:
                    return None
        finally:
            if self._file < 0:
                os.close(file)
        return found

    def fault(self) -> str | None:
        """What is wrong with its rows, in one line, or None. Reads all of them."""
        damaged = sum(self.row(index) is None for index in range(len(self.keys)))
        return f"{damaged} of its {len(self.keys)} rows do not match their checksums" if damaged else None

    def drop(self) -> None:
        """Remove the file, if it is still the one that was opened. Where removal is not allowed it stays."""
        with suppress(FileNotFoundError):
            if self._file < 0 or os.path.samestat(self.path.stat(), os.fstat(self._file)):
                drop(self.path)


def name_of(written: Path) -> str:
    """The name that a shard gets which was written to the file `written`."""
    with written.open("rb") as file:
        first = file.read(8)
        return f"{hashlib.sha256(first + file.read(int.from_bytes(first, 'little'))).hexdigest()}.safetensors"


def described(store: str, keys: Sequence[str], lengths: Mapping[str, Any], checksums: Mapping[str, Any]) -> str:
    """What a shard's metadata holds under `HEADER`.

    Args:
        store: the name of the cache's folder.
        keys: of the rows.
        lengths: stream -> the vectors of each row.
        checksums: stream -> the CRC-32 of the bytes of each row.
    """
    return json.dumps({"store": store, "keys": list(keys), "lengths": lengths, "checksums": checksums})


def fault(path: Path) -> str | None:
    """What is wrong with a shard, in one line, or None. Reads all of its bytes."""
    try:
        return ShardFile(path).fault()
    except DamagedShard as error:
        return str(error)


def drop(shard: Path) -> None:
    """Remove a damaged shard. Where removal is not allowed it stays."""
    try:
        shard.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def _bounds(lengths: Sequence[int], start: int, end: int) -> array[int]:
    """Where each row begins, and where the last one ends."""
    vector = (end - start) // max(1, sum(lengths))
    return array("Q", accumulate((length * vector for length in lengths), initial=start))


def _open(path: Path) -> tuple[int, bool]:
    """The descriptor of a file, and whether it can stay open: a large cache must leave some for the rest."""
    descriptor = os.open(path, os.O_RDONLY)  # descriptors are numbered from 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptor > soft // 2 and soft < hard:
        soft = min(4 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return descriptor, descriptor <= soft // 2


def _read(file: int, start: int, count: int) -> bytearray:
    # Fewer where the file ends before. Not by a mapping: touching a part that was cut off ends the process.
    found = bytearray(count)
    view, done = memoryview(found), 0
    while done < count and (read := os.preadv(file, [view[done:]], start + done)):
        done += read
    view.release()
    del found[done:]
    return found
