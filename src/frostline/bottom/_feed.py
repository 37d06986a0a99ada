"""From the activation cache to the step: a batch's stored states are read before its forward pass asks for them.

B batch rows, T tokens, d hidden width

A batch is known by its content. Whoever collates rows tells which rows went into the batch (`ReadAhead.expect`), and a
thread begins to read their states. The forward pass finds them by the batch's digest. A batch that nobody announced is
taken apart into its rows, and these are looked up. So no batch carries a key of ours, and a collator, a trainer or a
`generate` in between sees what it always saw.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._cache import ActivationCache
from frostline.bottom._rows import AlteredRow, Features, find_spans, packed_starts, place, row_key
from frostline.core.errors import UserError
from frostline.core.labels import IGNORED

MOST_EXPECTED = 8
"""Batches that are announced and not asked for yet; older ones are forgotten (a loader that was left)."""

States = dict[str, Tensor]
"""Stream -> [B, T, d] on the CPU."""


@dataclass(frozen=True)
class RowsInBatch:
    """The rows of a batch: their keys, and for each stream where they lie in [B, T]."""

    keys: tuple[str, ...]
    spans: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]


def rows_in_batch(
    keys: Sequence[str], batch: Mapping[str, Any], rows: Sequence[Features], names: Mapping[str, str]
) -> RowsInBatch:
    """Where rows lie in the batch that was collated of them.

    Args:
        keys: of the rows.
        batch: as collated.
        rows: the examples.
        names: for each stream the feature that its tokens are.
    """
    spans = {stream: find_spans(batch, rows, name) for stream, name in names.items()}
    shapes = {stream: (batch[name].shape[0], batch[name].shape[1]) for stream, name in names.items()}
    return RowsInBatch(tuple(keys), spans, shapes)


def stored_states(cache: ActivationCache, rows: RowsInBatch) -> States:
    """What `cache` holds of `rows`, put where they lie in their batch: stream -> [B, T, d] on the CPU."""
    found = [cache.read(key) for key in rows.keys]
    return {
        stream: place([own[stream] for own in found], spans, rows.shapes[stream])
        for stream, spans in rows.spans.items()
    }


def digest(batch: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """A hash of all tensors of a batch that the model's bottom may read."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        value = batch.get(name)
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class ReadAhead:
    """Reads the states of batches from a cache, in a thread, before they are asked for.

    Args:
        cache: the states of rows.
        inputs: the features that the model's bottom reads.
        names: for each stream the feature that its tokens are.
        pinned: whether states are put in pinned memory, for an accelerator.
    """

    def __init__(
        self, cache: ActivationCache, inputs: Sequence[str], names: Mapping[str, str], *, pinned: bool = False
    ) -> None:
        self.cache, self.inputs, self.names, self._pinned = cache, inputs, names, pinned
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="activation-cache")
        self._expected: OrderedDict[str, Future[States]] = OrderedDict()

    def expect(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> None:
        """Begin to read the states of a batch that was collated of `rows`. Rows that the cache lacks, or that the
        collator has changed, are nothing to read: the forward pass finds that out again."""
        try:
            keys = [row_key(row, self.inputs) for row in rows]
            if not keys or any(key not in self.cache for key in keys):
                return
            found = rows_in_batch(keys, batch, rows, self.names)
        except (AlteredRow, UserError, TypeError, ValueError, KeyError):
            return
        self._expected[digest(batch, self.inputs)] = self._pool.submit(self._read, found)
        while len(self._expected) > MOST_EXPECTED:
            self._expected.popitem(last=False)

    def take(self, batch: Mapping[str, Any]) -> States | None:
        """The states of a batch as the model is given it; None when one of its rows is not known."""
        coming = self._expected.pop(digest(batch, self.inputs), None)
        if coming is not None:
            return coming.result()
        rows = rows_of(batch, self.inputs)
        if rows is None:
            return None
        keys = [row_key(row, self.inputs) for row in rows]
        if not keys or any(key not in self.cache for key in keys):
            return None
        return self._read(rows_in_batch(keys, batch, rows, self.names))

    def _read(self, rows: RowsInBatch) -> States:
        states = stored_states(self.cache, rows)
        return {stream: value.pin_memory() for stream, value in states.items()} if self._pinned else states

    def close(self) -> None:
        """End the thread, and forget what was announced."""
        self._expected.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


def rows_of(batch: Mapping[str, Any], inputs: Sequence[str]) -> list[dict[str, Tensor]] | None:
    """The examples of a batch without their padding, or of a packed one: the features named in `inputs` of each.

    None for a batch that cannot be taken apart: it holds something beside one number a token, or its padding is not
    said by a mask.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    names = []
    for name in inputs:
        value = batch.get(name)
        if name == "labels" or value is None or isinstance(value, bool):
            continue
        if not isinstance(value, Tensor) or value.shape != ids.shape:
            return None
        names.append(name)
    if (starts := packed_starts(batch)) is not None:
        ends = [*starts[1:], ids.shape[1]]
        names.remove("position_ids")
        return [{name: batch[name][0, a:b].cpu() for name in names} for a, b in zip(starts, ends, strict=True)]
    mask = batch["attention_mask"] if "attention_mask" in names else torch.ones_like(ids)
    rows = [{name: batch[name][i][mask[i].bool()].cpu() for name in names} for i in range(len(ids))]
    if "labels" in inputs and isinstance(batch.get("labels"), Tensor):
        for row, labels in zip(rows, batch["labels"], strict=True):
            row["labels"] = labels[labels != IGNORED].cpu()
    return rows
