"""One shard of an activation cache: the boundary states of some rows, without padding, in one safetensors file.

N tokens of all rows in the shard, n tokens of one row

For each stream there is one tensor [N, width]. `core/shards.py` says what the header and the name of the file hold, and
finds any change of it.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from frostline.core.cache import IDENTITY, unfinished
from frostline.core.files import disk_errors
from frostline.core.shards import HEADER, ShardFile, described, name_of

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
    """An open shard: its rows as tensors.

    Args:
        path: of the file.
        streams: the width and dtype of each stream.

    Raises `FileNotFoundError` when it was removed, and `DamagedShard`.
    """

    def __init__(self, path: Path, streams: Mapping[str, Stream]) -> None:
        self.file, self._streams = ShardFile(path), streams

    def row(self, index: int) -> dict[str, Tensor] | None:
        """The states of one row, stream -> [n, width]; None where they are damaged."""
        found = self.file.row(index)
        if found is None:
            return None
        return {name: _states(found[name], stream) for name, stream in self._streams.items()}


def _states(found: bytearray, stream: Stream) -> Tensor:
    flat = torch.frombuffer(found, dtype=stream.dtype) if found else torch.empty(0, dtype=stream.dtype)
    return flat.view(-1, stream.width)


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
    lengths = {name: [row.shape[0] for row in own] for name, own in stored.items()}
    header = described(
        folder.name, list(rows), lengths, {n: [_checksum(row) for row in own] for n, own in stored.items()}
    )
    with disk_errors(folder), unfinished(folder) as place:
        written = place / "shard"
        save_file(states, written, metadata={HEADER: header})
        with written.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copymode(folder / IDENTITY, written)  # safetensors lets only the owner read it
        path = folder / name_of(written)
        written.replace(path)
    return path


def _checksum(states: Tensor) -> int:
    return zlib.crc32(states.contiguous().view(torch.uint8).numpy().data)


def _check(streams: Mapping[str, Stream], rows: Rows) -> None:
    for key, row in rows.items():
        found: Any = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in row.items()}
        expected = {name: ((stream.width,), stream.dtype) for name, stream in streams.items()}
        if found != expected:
            raise ValueError(f"row {key}: the cache needs {expected}, but the states are {found}")
