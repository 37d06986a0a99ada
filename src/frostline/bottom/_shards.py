"""One shard of an activation cache: the boundary states of some rows, without padding, in one safetensors file.

N tokens of all rows in the shard, n tokens of one row

For each stream there is one tensor [N, width]. The header holds the keys, lengths and checksums (CRC-32) of the rows.
The name of the file is the SHA-256 of all its bytes. So any change of the content is found: before the shard is used,
and again as each row is read.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from frostline.core.cache import HEADER, IDENTITY, unfinished
from frostline.core.files import disk_errors, sha256

Rows = Mapping[str, Mapping[str, Tensor]]
"""Key of a row -> stream -> states [n, width]."""


@dataclass(frozen=True)
class Stream:
    """A sequence of vectors for each row: their width, and the dtype in which they are stored."""

    width: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.width < 1 or self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"a stream needs a width of at least 1 and float32, bfloat16 or float16: {self}")


def row_bytes(streams: Mapping[str, Stream], lengths: Mapping[str, int]) -> int:
    """The bytes of `lengths[stream]` vectors of each stream on disk, for one row or for many rows together.

    This is exact except for the header of a shard: about 80 bytes for each row, and 15 for each stream of a row.
    """
    return sum(lengths[name] * stream.width * stream.dtype.itemsize for name, stream in streams.items())


class Shard:
    """An open shard. In a stream, row i lies from `bounds[i]` to `bounds[i + 1]`.

    The file stays open, so rows can be read after it was removed. Each row is compared with its checksum whenever it
    is read: where the file was overwritten or cut off in place, the row is damaged, and never has other states.

    Args:
        path: a verified shard.
        streams: the width and dtype of each stream.

    Raises `FileNotFoundError` when it was removed.
    """

    def __init__(self, path: Path, streams: Mapping[str, Stream]) -> None:
        self.path, self._streams = path, streams
        self._file = _open(path)
        weakref.finalize(self, os.close, self._file)
        start = 8 + int.from_bytes(self._bytes(0, 8), "little")
        tensors = json.loads(self._bytes(8, start - 8))
        header = json.loads(tensors["__metadata__"][HEADER])
        self.keys: tuple[str, ...] = tuple(header["keys"])
        self._checksums: Mapping[str, Sequence[int]] = header["checksums"]
        self._starts = {name: start + tensors[name]["data_offsets"][0] for name in streams}
        self._bounds = {name: tuple(accumulate(header["lengths"][name], initial=0)) for name in streams}

    def row(self, index: int) -> dict[str, Tensor] | None:
        """The states of one row, stream -> [n, width]; None where they are damaged."""
        states = {}
        for name, stream in self._streams.items():
            (first, end), vector = self._bounds[name][index : index + 2], stream.width * stream.dtype.itemsize
            found = self._bytes(self._starts[name] + first * vector, (end - first) * vector)
            if zlib.crc32(found) != self._checksums[name][index]:
                return None
            flat = torch.frombuffer(found, dtype=stream.dtype) if found else torch.empty(0, dtype=stream.dtype)
            states[name] = flat.view(-1, stream.width)
        return states

    def _bytes(self, start: int, count: int) -> bytearray:
        # Fewer where the file ends before. Not by a mapping: touching a part that was cut off ends the process.
        found = bytearray(count)
        view, done = memoryview(found), 0
        while done < count and (read := os.preadv(self._file, [view[done:]], start + done)):
            done += read
        view.release()
        del found[done:]
        return found


def write_shard(folder: Path, streams: Mapping[str, Stream], rows: Rows) -> Path:
    """Write `rows` as one shard and give its path. The shard is written completely or not at all.

    Args:
        folder: of the activation cache.
        streams: the width and dtype of each stream.
        rows: key -> stream -> states [n, width].

    Raises `FrostlineError` when the disk is full, `ValueError` for states that do not fit `streams`.
    """
    _check(streams, rows)
    stored = {name: [row[name].detach().cpu() for row in rows.values()] for name in streams}
    states = {name: torch.cat(own).contiguous() for name, own in stored.items()}
    header = {
        "store": folder.name,
        "keys": list(rows),
        "lengths": {name: [row.shape[0] for row in own] for name, own in stored.items()},
        "checksums": {name: [_checksum(row) for row in own] for name, own in stored.items()},
    }
    with disk_errors(folder), unfinished(folder) as place:
        written = place / "shard"
        save_file(states, written, metadata={HEADER: json.dumps(header)})
        with written.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copymode(folder / IDENTITY, written)  # safetensors lets only the owner read it
        path = folder / f"{sha256(written)}.safetensors"
        written.replace(path)
    return path


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    # Descriptors are numbered from 0: a large cache must not take those that the rest of the program needs.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptor > soft // 2 and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * soft, hard), hard))
    return descriptor


def _checksum(states: Tensor) -> int:
    return zlib.crc32(states.contiguous().view(torch.uint8).numpy().data)


def _check(streams: Mapping[str, Stream], rows: Rows) -> None:
    for key, row in rows.items():
        found: Any = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in row.items()}
        expected = {name: ((stream.width,), stream.dtype) for name, stream in streams.items()}
        if found != expected:
            raise ValueError(f"row {key}: the cache needs {expected}, but the states are {found}")
