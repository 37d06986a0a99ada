"""The cold pass: every example goes through the frozen bottom once, and its boundary states to the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.bottom._capture import capture
from frostline.bottom._rows import Features, cut_out, find_spans, row_length, trimmed
from frostline.bottom._store import ColdStore

BATCH_TOKENS = {"cpu": 1024, "accelerator": 16384}
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 10.0

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


def cold_pass(
    model: nn.Module,
    places: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    store: ColdStore,
    *,
    feed: Feed | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Put the states of `rows` (key -> features) that leave the blocks in `places` into `store`.

    Rows go through in batches of similar length. Shards are written as they fill, so that a pass that is killed
    goes on where it stopped; one that is interrupted loses nothing. `feed` is called with a batch's keys before it
    runs (to replay what lies below already), `progress` with the rows done so far. The model is left in eval mode.
    """
    model.eval()
    held: dict[str, dict[str, Tensor]] = {}
    done, since = 0, time.monotonic()
    try:
        for keys in _batches(rows, passage):
            held |= _pass(model, places, passage, {key: rows[key] for key in keys}, feed)
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


def _pass(
    model: nn.Module,
    places: Mapping[str, str],
    passage: Passage,
    rows: Mapping[str, Features],
    feed: Feed | None,
) -> dict[str, dict[str, Tensor]]:
    """The states of one batch's rows: key -> stream -> [n, d]."""
    features = list(rows.values())
    batch = passage.batch(features)
    spans = {stream: find_spans(batch, features, name) for stream, name in passage.names.items()}
    for stream, name in passage.names.items():
        batch = trimmed(batch, spans[stream], name)
    if feed is not None:
        feed(list(rows), batch)
    with passage.context():
        states = capture(model, places, batch)
    parts = {s: cut_out(hidden.to("cpu", passage.dtypes[s]), spans[s]) for s, hidden in states.items()}
    return {key: {s: own[i].clone() for s, own in parts.items()} for i, key in enumerate(rows)}


def _batches(rows: Mapping[str, Features], passage: Passage) -> Iterator[list[str]]:
    """Keys in batches of at most `BATCH_TOKENS` padded tokens (or one row), the longest rows first."""
    most = BATCH_TOKENS["cpu" if passage.device.type == "cpu" else "accelerator"]
    lengths = {key: passage.length(features) for key, features in rows.items()}
    batch: list[str] = []
    for key in sorted(rows, key=lambda key: lengths[key], reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch
