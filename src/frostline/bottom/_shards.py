"""One shard of an activation cache: the boundary states of some rows, without padding, in one safetensors file.

N tokens of all rows in the shard, n tokens of one row

For each stream there is one tensor [N, width]. The header holds the keys and lengths of the rows. The name of the file
is the SHA-256 of all its bytes, so any change of the content is detected.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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

    This is exact except for the header of a shard, which has about 80 bytes for each row.
    """
    return sum(lengths[name] * stream.width * stream.dtype.itemsize for name, stream in streams.items())


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory. In a stream, row i lies from `bounds[i]` to `bounds[i + 1]`."""

    keys: tuple[str, ...]
    states: Mapping[str, Tensor]
    bounds: Mapping[str, tuple[int, ...]]

    def row(self, index: int) -> dict[str, Tensor]:
        """The states of one row, stream -> [n, width], as views."""
        return {
            name: tensor[self.bounds[name][index] : self.bounds[name][index + 1]]
            for name, tensor in self.states.items()
        }


def write_shard(folder: Path, streams: Mapping[str, Stream], rows: Rows) -> Path:
    """Write `rows` as one shard and give its path. The shard is written completely or not at all.

    Args:
        folder: of the activation cache.
        streams: the width and dtype of each stream.
        rows: key -> stream -> states [n, width].

    Raises `FrostlineError` when the disk is full, `ValueError` for states that do not fit `streams`.
    """
    _check(streams, rows)
    states = {name: torch.cat([row[name].detach().cpu() for row in rows.values()]).contiguous() for name in streams}
    lengths = {name: [row[name].shape[0] for row in rows.values()] for name in streams}
    header = {"store": folder.name, "keys": list(rows), "lengths": lengths}
    with disk_errors(folder), unfinished(folder) as place:
        written = place / "shard"
        save_file(states, written, metadata={HEADER: json.dumps(header)})
        with written.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copymode(folder / IDENTITY, written)  # safetensors lets only the owner read it
        path = folder / f"{sha256(written)}.safetensors"
        written.replace(path)
    return path


def open_shard(path: Path, streams: Mapping[str, Stream]) -> Shard:
    """Map a verified shard into memory. Raises `FileNotFoundError` when it was removed.

    The mapping is private: writing to it changes the copy of this process, never the file.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        states: dict[str, Tensor] = {name: file.get_tensor(name) for name in streams}
    bounds = {name: tuple(accumulate(header["lengths"][name], initial=0)) for name in streams}
    return Shard(tuple(header["keys"]), states, bounds)


def _check(streams: Mapping[str, Stream], rows: Rows) -> None:
    for key, row in rows.items():
        found: Any = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in row.items()}
        expected = {name: ((stream.width,), stream.dtype) for name, stream in streams.items()}
        if found != expected:
            raise ValueError(f"row {key}: the cache needs {expected}, but the states are {found}")
