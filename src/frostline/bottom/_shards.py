"""One shard of an activation cache: the boundary states of some rows, without padding, in one safetensors file.

N is the number of tokens of all rows in the shard, n of one row. Per stream there is one tensor [N, width]; the header
holds the rows' keys and lengths. The file is named by the SHA-256 of all its bytes, so nothing in it changes unseen.
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
"""Per row's key and stream its states [n, width]."""


@dataclass(frozen=True)
class Stream:
    """A named sequence of vectors per row: their width, and the dtype they are kept in."""

    width: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.width < 1 or self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"a stream has a width of at least 1, in float32, bfloat16 or float16: {self}")


def row_bytes(streams: Mapping[str, Stream], lengths: Mapping[str, int]) -> int:
    """The bytes that `lengths[stream]` vectors of each stream take on disk: of one row, or of all in total.

    Exact but for a shard's header, which takes about 80 bytes a row.
    """
    return sum(lengths[name] * stream.width * stream.dtype.itemsize for name, stream in streams.items())


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory: row i of a stream lies from `bounds[i]` to `bounds[i + 1]`."""

    keys: tuple[str, ...]
    states: Mapping[str, Tensor]
    bounds: Mapping[str, tuple[int, ...]]

    def row(self, index: int) -> dict[str, Tensor]:
        """Views [n, width] of one row's states."""
        return {
            name: tensor[self.bounds[name][index] : self.bounds[name][index + 1]]
            for name, tensor in self.states.items()
        }


def write_shard(folder: Path, streams: Mapping[str, Stream], rows: Rows) -> Path:
    """Write `rows` as one shard of the store in `folder`, whole or not at all, and give its path.

    Raises `FrostlineError` when the disk is full, `ValueError` for states that are not as `streams` says.
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
        shutil.copymode(folder / IDENTITY, written)  # safetensors makes it the owner's alone
        path = folder / f"{sha256(written)}.safetensors"
        written.replace(path)
    return path


def open_shard(path: Path, streams: Mapping[str, Stream]) -> Shard:
    """Map a shard that has been verified. Raises `FileNotFoundError` when it is gone.

    The mapping is private: who writes into it changes this process's copy, never the file.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        states: dict[str, Tensor] = {name: file.get_tensor(name) for name in streams}
    bounds = {name: tuple(accumulate(header["lengths"][name], initial=0)) for name in streams}
    return Shard(tuple(header["keys"]), states, bounds)


def _check(streams: Mapping[str, Stream], rows: Rows) -> None:
    for key, row in rows.items():
        found: Any = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in row.items()}
        wanted = {name: ((stream.width,), stream.dtype) for name, stream in streams.items()}
        if found != wanted:
            raise ValueError(f"row {key}: the store keeps {wanted}, given {found}")
