"""The caching pass: every example goes through the frozen bottom once, and its boundary states to the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frostline.bottom._cache import ActivationCache
from frostline.bottom._rows import Features, cut_out, find_spans, row_length, trimmed
from frostline.hooks import capture, evaluation_mode

BATCH_TOKENS = {"cpu": 1024, "accelerator": 16384}
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 10.0
EXACT, ROUNDED = 1e-3, 0.1
"""How far a row's states may differ, relative to their norm, between two batches: in float32, in fewer bits."""

T = TypeVar("T")

Feed = Callable[[Sequence[str], Mapping[str, Any]], None]
"""Makes the states below ready for a batch: called with its rows' keys and the batch."""


@dataclass(frozen=True)
class Passage:
    """How a batch goes through the bottom.

    `names` says for each stream which feature its tokens are, `dtypes` what its states are stored in; `collate`
    makes a batch of rows, `context` is the autocast under which training computes.
    """

    names: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    collate: Callable[[Sequence[Features]], Mapping[str, Any]]
    context: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    def batch(self, rows: Sequence[Features]) -> dict[str, Any]:
        """A collated batch on the device."""
        made = self.collate(rows)
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in made.items()}

    def length(self, features: Features) -> int:
        """Tokens of an example, the longest stream's."""
        return max(row_length(features, name) for name in set(self.names.values()))


def caching_pass(
    model: nn.Module,
    places: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    store: ActivationCache,
    *,
    feed: Feed | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Put the states of `rows` (key -> features) that leave the blocks in `places` into `store`.

    Rows go through in batches of similar length. Shards are written as they fill, so that a pass that is killed
    goes on where it stopped; one that is interrupted loses nothing. `feed` is called with a batch's keys before it
    runs (to replay what lies below already), `progress` with the rows done so far.
    """
    most = BATCH_TOKENS["cpu" if passage.device.type == "cpu" else "accelerator"]
    held: dict[str, dict[str, Tensor]] = {}
    done, since = 0, time.monotonic()
    try:
        for keys in batches_by_length(rows, lambda key: passage.length(rows[key]), most):
            held |= pass_rows(model, places, passage, {key: rows[key] for key in keys}, feed)
            done += len(keys)
            size = sum(state.nbytes for states in held.values() for state in states.values())
            if size >= SHARD_BYTES or time.monotonic() - since > SHARD_SECONDS:
                store.write(held)
                held, since = {}, time.monotonic()
            progress(done)
    except KeyboardInterrupt:
        store.write(held)
        raise
    store.write(held)


def pass_rows(
    model: nn.Module,
    places: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    feed: Feed | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The states of `rows`, as one batch, that leave the blocks in `places`: key -> stream -> [n, d]."""
    features = list(rows.values())
    batch = passage.batch(features)
    spans = {stream: find_spans(batch, features, name) for stream, name in passage.names.items()}
    for stream, name in passage.names.items():
        batch = trimmed(batch, spans[stream], name)
    if feed is not None:
        feed(list(rows), batch)
    with evaluation_mode(model), passage.context():
        states = capture(model, places, batch)
    parts = {s: cut_out(hidden.to("cpu", passage.dtypes[s]), spans[s]) for s, hidden in states.items()}
    return {key: {s: own[i].clone() for s, own in parts.items()} for i, key in enumerate(rows)}


def same_states(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether a row's states, stream -> [n, d], are the same but for rounding: that of another batch, and of the
    dtype that they are stored in."""
    for stream, states in own.items():
        bound = EXACT if states.dtype == torch.float32 else ROUNDED
        if not (states.float() - other[stream].float()).norm() <= bound * states.float().norm():
            return False
    return True


def batches_by_length(items: Iterable[T], length: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """`items` in batches of at most `most` tokens with their padding (or of one item), the longest first."""
    batch: list[T] = []
    for item in sorted(items, key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > most:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
