"""The caching pass: every row goes through the frozen bottom once, and its boundary states are written to the cache.

n tokens of a row, d hidden width
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


def caching_pass(
    model: nn.Module,
    blocks: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    cache: ActivationCache,
    *,
    feed: Feed | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write the states that some blocks return for `rows` to `cache`.

    Rows go through in batches of similar length. A shard is written whenever enough states are collected. So a pass
    that is killed can continue near where it stopped, and one that is interrupted (Ctrl-C) loses nothing.

    Args:
        model: whose blocks run.
        blocks: stream -> the block whose output is kept.
        passage: how a batch goes through the bottom.
        rows: key -> features.
        cache: which gets the states.
        feed: called before each batch runs, to supply the states below it where they were computed before.
        progress: called with the number of rows done so far.
    """
    most = BATCH_TOKENS["cpu" if passage.device.type == "cpu" else "accelerator"]
    held: dict[str, dict[str, Tensor]] = {}
    done, since = 0, time.monotonic()
    try:
        length = rows.length if isinstance(rows, KnownRows) else lambda key: passage.length(rows[key])
        for keys in batches_by_length(rows, length, most):
            held |= pass_rows(model, blocks, passage, {key: rows[key] for key in keys}, feed)
            done += len(keys)
            size = sum(state.nbytes for states in held.values() for state in states.values())
            if size >= SHARD_BYTES or time.monotonic() - since > SHARD_SECONDS:
                cache.write(held)
                held, since = {}, time.monotonic()
            progress(done)
    except KeyboardInterrupt:
        cache.write(held)
        raise
    cache.write(held)


def pass_rows(
    model: nn.Module,
    blocks: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    feed: Feed | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The states that the blocks in `blocks` return for `rows`, run as one batch: key -> stream -> [n, d].

    The arguments are those of `caching_pass`.
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
