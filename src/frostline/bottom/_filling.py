"""An activation cache that is filled while training runs: what was just computed can be read at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from frostline.bottom._bottom import Bottom
from frostline.bottom._cache import ActivationCache, DamagedRow, check_room
from frostline.bottom._caching_pass import SHARD_BYTES, SHARD_SECONDS, CachingPass
from frostline.bottom._cut import last_blocks
from frostline.bottom._feed import RowsInBatch, States, in_batch
from frostline.bottom._rows import AlteredRow, Features
from frostline.core.errors import ConfigError, FrostlineError, first_line

Collate = Callable[[Sequence[Features]], Mapping[str, Any]]
Progress = Callable[[int, int], None]
KeysOf = Callable[[Mapping[str, Any]], tuple[str, ...] | None]


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
            return in_batch([self._held[key] if key in self._held else self.cache.read(key) for key in rows.keys], rows)
        except (DamagedRow, KeyError):  # just found to be damaged
            return None

    def add(self, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep the states of `rows`, key -> stream -> [n, d] on the CPU, and write them when there are enough."""
        if self.full is not None:
            return
        new = {key: dict(states) for key, states in rows.items() if key not in self}
        self._held |= new
        self._size += sum(state.nbytes for states in new.values() for state in states.values())
        if self._size >= SHARD_BYTES or (self._size and time.monotonic() - self._since > SHARD_SECONDS):
            self.flush()

    def fill(self, model: Any, bottom: Bottom, rows: Iterable[Features], keys_of: KeysOf, progress: Progress) -> None:
        """Let rows go through the bottom now, those of like length together.

        Args:
            model: the model itself.
            bottom: of the model.
            rows: tokenized rows.
            keys_of: gives the keys by which the rows of a call are recognized, or None.
            progress: called with the number of rows that are done, and that of all.

        Raises `ConfigError` for rows that are not tokenized, and where there is no room for their states, and
        `AlteredRow` where a call with these rows would not be recognized.
        """
        if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
            raise ConfigError(
                f"activation_cache: rows are tokenized rows, not {type(rows).__name__}: use a list of them"
            )
        every = {}
        for row in rows:
            if not isinstance(row, Mapping):
                raise ConfigError(
                    f"activation_cache: a row is a dict of tokens, not {type(row).__name__}: tokenize rows"
                )
            every[bottom.key(row)] = row
        few = dict(list(every.items())[:2])
        if few and keys_of(bottom.passage.batch(list(few.values()))) != tuple(few):
            raise AlteredRow(
                "the batches of the collator do not hold the rows as they are, so calls with them would not be "
                "recognized"
            )
        missing = self.cache.missing(every)
        size = sum(bottom.bytes_of(every[key]) for key in missing)
        check_room(self._root, size, self._limit)
        caching_pass = CachingPass(model, last_blocks(bottom.cut), bottom.passage, every, self.cache)
        caching_pass.run(lambda done: progress(done, len(missing)))
        self.written, self.bytes = self.written + len(missing), self.bytes + size

    def forget(self) -> None:
        """Drop what is held and not written: it may be wrong."""
        self._held, self._size = {}, 0

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


@dataclass(frozen=True)
class OpenCache:
    """A cache that is open, and the bottom whose states it holds, for one precision."""

    bottom: Bottom
    cache: FillingCache


def stored(caches: Iterable[FillingCache], fed: int) -> tuple[int, int, str]:
    """Rows and bytes that were stored in `caches`, and one line on them; `fed` calls have read from them."""
    found = list(caches)
    written, size = sum(cache.written for cache in found), sum(cache.bytes for cache in found)
    full = next((f"; no more are stored: {cache.full}" for cache in found if cache.full is not None), "")
    return written, size, f"on: {written:,} rows were stored, {fed:,} calls did not run the bottom{full}"
