"""The caching pass: every row goes through the frozen bottom once, and its boundary states are written to the cache.

n tokens of a row, d hidden width

Several processes may make one pass side by side. The rows are divided into batches and these into chunks, which follow
from the rows alone. A process claims a chunk, writes what is missing of it, and goes to the next that nobody has
claimed; at the end it waits for those of others. So each row passes once, in the same batch whoever runs it, and gets
the same states bit for bit on the same kind of machine. A claim ends with its process, and the next takes the chunk.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frostline.bottom._cache import ActivationCache
from frostline.bottom._known import KnownRows
from frostline.bottom._rows import Features, find_spans, of_rows, row_length, trimmed
from frostline.hooks import capture, evaluation_mode

BATCH_TOKENS = {"cpu": 1024, "accelerator": 16384}
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 10.0
FEWEST_CHUNKS, SMALLEST_CHUNK = 32, 2**20
"""So many chunks a small pass is divided into, for processes that share it, but not into smaller ones (bytes)."""
EXACT, ROUNDED = 1e-3, 0.1
"""How far the states of a row may differ between two batches, relative to their norm: in float32, and in fewer bits."""

T = TypeVar("T")

Feed = Callable[[Sequence[str], Mapping[str, Any]], None]
"""Prepares the states below a block for a batch. It is called with the keys of the rows and the batch."""


@dataclass(frozen=True)
class Passage:
    """How a batch goes through the frozen bottom.

    Attributes:
        names: stream -> the feature that holds its tokens.
        dtypes: stream -> the dtype in which its states are stored.
        collate: makes a batch of rows.
        context: gives the autocast context in which training computes.
        device: on which the model computes.
    """

    names: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    collate: Callable[[Sequence[Features]], Mapping[str, Any]]
    context: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    def batch(self, rows: Sequence[Features]) -> dict[str, Any]:
        """The batch that is collated from `rows`, on the device."""
        made = self.collate(rows)
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in made.items()}

    def length(self, features: Features) -> int:
        """The number of tokens of a row, in its longest stream."""
        return max(row_length(features, name) for name in set(self.names.values()))


Chunk = tuple[tuple[str, ...], ...]
"""Batches of keys whose states make about one shard."""


@dataclass(frozen=True)
class CachingPass:
    """A caching pass that other processes may make too.

    Attributes:
        model: whose blocks run.
        blocks: stream -> the block whose output is kept.
        passage: how a batch goes through the bottom.
        rows: key -> features; also those whose states are there.
        cache: which gets the states.
        feed: called before each batch runs, to supply the states below it.
    """

    model: nn.Module
    blocks: Mapping[str, str]
    passage: Passage
    rows: Mapping[str, Features]
    cache: ActivationCache
    feed: Feed | None = None

    def chunks(self) -> list[Chunk]:
        """How the rows are divided: the same in every process, whatever is in the cache."""
        batches = self._batches(self.rows)
        sizes = [self.cache.bytes_of(sum(map(self._length, batch))) for batch in batches]
        enough = min(SHARD_BYTES, max(SMALLEST_CHUNK, sum(sizes) // FEWEST_CHUNKS))
        chunks: list[Chunk] = []
        begun, size = 0, 0
        for end, own in enumerate(sizes, 1):
            size += own
            if size >= enough or end == len(sizes):
                chunks.append(tuple(batches[begun:end]))
                begun, size = end, 0
        return chunks

    def run(self, progress: Callable[[int], None] = lambda rows: None) -> int:
        """Write what is missing, or wait until others have. Gives the number of rows that were run here.

        Args:
            progress: called with the number of the missing rows that are there now.
        """
        missing = set(self.cache.missing(self.rows))
        if not missing:
            return 0  # nothing is written, not even a lock
        done = ran = 0
        with self.cache.filling():
            left = [chunk for chunk in self.chunks() if not missing.isdisjoint(chain(*chunk))]
            for wait in (False, True):  # what others have claimed comes last
                claimed = []
                for chunk in left:
                    own = self.through(chunk, wait=wait, progress=partial(_further, progress, done))
                    if own is None:
                        claimed.append(chunk)
                        continue
                    ran += own
                    done += len(missing.intersection(chain(*chunk)))
                    progress(done)
                left = claimed
        return ran

    def through(self, chunk: Chunk, *, wait: bool, progress: Callable[[int], None] = lambda rows: None) -> int | None:
        """Write what is missing of a chunk, and give the number of its rows; None where another process has claimed it.

        Args:
            chunk: one of `chunks`.
            wait: until the other process is done, or has ended.
            progress: called with the number of rows that were run.
        """
        with self.cache.claimed(_name(chunk), wait=wait) as own:
            if not own:
                return None
            missing = set(self.cache.missing(chain(*chunk)))
            # Whole batches as they are, so that a pass that was killed ends with the same bits.
            whole = [batch for batch in chunk if missing.issuperset(batch)]
            rest = self._batches(key for batch in chunk if batch not in whole for key in batch if key in missing)
            held: dict[str, dict[str, Tensor]] = {}
            ran, since = 0, time.monotonic()
            try:
                for batch in (*whole, *rest):
                    rows = {key: self.rows[key] for key in batch}
                    held |= pass_rows(self.model, self.blocks, self.passage, rows, self.feed)
                    ran += len(batch)
                    if time.monotonic() - since > SHARD_SECONDS:
                        self.cache.write(held)
                        held, since = {}, time.monotonic()
                    progress(ran)
            except KeyboardInterrupt:
                self.cache.write(held)
                raise
            self.cache.write(held)
        return ran

    def _batches(self, keys: Iterable[str]) -> list[tuple[str, ...]]:
        most = BATCH_TOKENS["cpu" if self.passage.device.type == "cpu" else "accelerator"]
        return [tuple(batch) for batch in batches_by_length(keys, self._length, most)]

    def _length(self, key: str) -> int:
        rows = self.rows
        return rows.length(key) if isinstance(rows, KnownRows) else self.passage.length(rows[key])


def _further(progress: Callable[[int], None], before: int, rows: int) -> None:
    progress(before + rows)


def _name(chunk: Chunk) -> str:
    """What all processes call a chunk."""
    return hashlib.blake2b(" ".join(chain(*chunk)).encode(), digest_size=16).hexdigest()


def pass_rows(
    model: nn.Module,
    blocks: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    feed: Feed | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The states that the blocks in `blocks` return for `rows`, run as one batch: key -> stream -> [n, d].

    The arguments are the attributes of `CachingPass`.
    """
    features = list(rows.values())
    batch = passage.batch(features)
    spans = {stream: find_spans(batch, features, name) for stream, name in passage.names.items()}
    for stream, name in passage.names.items():
        batch = trimmed(batch, spans[stream], name)
    if feed is not None:
        feed(list(rows), batch)
    with evaluation_mode(model), passage.context():
        states = capture(model, blocks, batch)
    return of_rows(states, rows, spans, passage.dtypes)


def same_states(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of states of a row, stream -> [n, d], are equal except for rounding errors.

    Such errors come from a batch of another shape, and from the dtype in which states are stored.
    """
    for stream, states in own.items():
        bound = EXACT if states.dtype == torch.float32 else ROUNDED
        if not (states.float() - other[stream].float()).norm() <= bound * states.float().norm():
            return False
    return True


def batches_by_length(items: Iterable[T], length: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Group `items` into batches, the longest items first.

    Args:
        items: to be grouped.
        length: gives the number of tokens of an item.
        most: tokens of a batch, padding included; a longer item is a batch alone.
    """
    batch: list[T] = []
    for item in sorted(items, key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > most:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
