"""An activation cache that is filled while training runs: what was just computed can be read at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from frostline.bottom._cache import ActivationCache, DamagedRow, check_room
from frostline.bottom._caching_pass import SHARD_BYTES, SHARD_SECONDS
from frostline.bottom._feed import RowsInBatch, States
from frostline.bottom._rows import place
from frostline.core.errors import ConfigError, FrostlineError, first_line


class FillingCache:
    """The states of rows, some of them not written yet.

    Attributes:
        full: why nothing more is stored, in one line; None while there is room.
        written: rows that were stored here.
        bytes: their size.

    Args:
        cache: on disk.
        root: the folder in which all activation caches lie.
        limit: bytes that all caches together may use; None: only the disk limits them.
    """

    def __init__(self, cache: ActivationCache, root: Path, limit: int | None) -> None:
        self.cache, self._root, self._limit = cache, root, limit
        self.full: str | None = None
        self.written, self.bytes = 0, 0
        self._held: dict[str, dict[str, Tensor]] = {}
        self._size, self._since = 0, time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self.cache

    def read(self, rows: RowsInBatch) -> States | None:
        """The states of `rows` at their places in the batch, stream -> [B, T, d]; None where one is missing."""
        if any(key not in self for key in rows.keys):
            return None
        try:
            found = [self._held[key] if key in self._held else self.cache.read(key) for key in rows.keys]
        except DamagedRow:
            return None
        return {
            stream: place([own[stream] for own in found], spans, rows.shapes[stream])
            for stream, spans in rows.spans.items()
        }

    def add(self, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep the states of `rows`, key -> stream -> [n, d] on the CPU, and write them when there are enough."""
        if self.full is not None:
            return
        new = {key: dict(states) for key, states in rows.items() if key not in self}
        self._held |= new
        self._size += sum(state.nbytes for states in new.values() for state in states.values())
        if self._size >= SHARD_BYTES or (self._size and time.monotonic() - self._since > SHARD_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Write what is held, and find what other processes wrote."""
        held, self._held = self._held, {}
        size, self._size = self._size, 0
        self._since = time.monotonic()
        if held:
            try:
                check_room(self._root, size, self._limit)
            except ConfigError as error:
                self.full = str(error)
                return
            try:
                self.cache.write(held)
            except (FrostlineError, OSError) as error:  # training goes on without it
                self.full = first_line(error)
                return
            self.written, self.bytes = self.written + len(held), self.bytes + size
        self.cache.refresh()
