"""From the activation cache to the training step: the states of a batch are read before the forward pass needs them.

B batch rows, T tokens, d hidden width

A batch is identified by its content, so nothing has to be added to it, and collators, trainers and `generate` work as
always:

1. The code that collates a batch calls `ReadAhead.expect` with the rows and the batch. A thread begins to read the
   states of these rows. They are kept under the digest of the batch, a hash of its tensors.
2. The forward pass computes the digest of the batch that it gets, and finds the states (`ReadAhead.take`).
3. For a batch that was not announced, the rows are recovered from the batch itself, without padding, and looked up.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._cache import ActivationCache, DamagedRow
from frostline.bottom._rows import Features, find_spans, place, row_key
from frostline.core.errors import DataError
from frostline.core.labels import IGNORED
from frostline.hooks import packed_starts

MOST_EXPECTED = 8
"""How many announced batches may wait. Older ones are dropped: their data loader was abandoned."""

BRINGS_STATES = ("past_key_values", "inputs_embeds", "encoder_outputs")
"""Arguments of a call that replace token ids: the rows cannot be recognized."""
_ASKS_BELOW = ("output_hidden_states", "output_attentions", "use_cache")
"""Arguments of a call that ask for outputs of the blocks below the boundary."""
_CONFIG_ASKS_BELOW = ("output_hidden_states", "output_attentions")
"""Those that a call without them takes from the model's config. (`use_cache` means nothing in training.)"""

States = dict[str, Tensor]
"""Stream -> [B, T, d] on the CPU."""


@dataclass(frozen=True)
class RowsInBatch:
    """The rows of a batch: their keys, and for each stream their places in the batch and its shape [B, T]."""

    keys: tuple[str, ...]
    spans: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]


def rows_in_batch(
    keys: Sequence[str], batch: Mapping[str, Any], rows: Sequence[Features], names: Mapping[str, str]
) -> RowsInBatch:
    """Find rows in the batch that was collated from them. Raises `AlteredRow` as `find_spans` does.

    Args:
        keys: the key of each row.
        batch: as collated.
        rows: its rows.
        names: stream -> the feature that holds its tokens.
    """
    spans = {stream: find_spans(batch, rows, name) for stream, name in names.items()}
    shapes = {stream: (batch[name].shape[0], batch[name].shape[1]) for stream, name in names.items()}
    return RowsInBatch(tuple(keys), spans, shapes)


def stored_states(cache: ActivationCache, rows: RowsInBatch) -> States:
    """The states of `rows` from `cache`, at their places in the batch: stream -> [B, T, d] on the CPU."""
    return in_batch([cache.read(key) for key in rows.keys], rows)


def in_batch(found: Sequence[Mapping[str, Tensor]], rows: RowsInBatch) -> States:
    """The states of each row, stream -> [n, d], at its places in the batch: stream -> [B, T, d]."""
    return {
        stream: place([own[stream] for own in found], spans, rows.shapes[stream])
        for stream, spans in rows.spans.items()
    }


def asks_below(config: Any, batch: Mapping[str, Any]) -> bool:
    """Whether a call asks for outputs of blocks below the boundary, itself or by the model's config.

    A callback may set the config at any time.
    """
    by_config = any(batch.get(name) is None and getattr(config, name, False) for name in _CONFIG_ASKS_BELOW)
    return by_config or any(bool(batch.get(name)) for name in _ASKS_BELOW)


def digest(batch: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """A hash of all tensors of a batch that the model's bottom may read; `inputs` names them."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        value = batch.get(name)
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class ReadAhead:
    """Reads the states of batches from a cache, in a thread, before they are needed.

    Args:
        cache: the states of rows.
        inputs: the features that the model's bottom reads.
        names: stream -> the feature that holds its tokens.
        pinned: put states in pinned memory, for a fast copy to an accelerator.
    """

    def __init__(
        self, cache: ActivationCache, inputs: Sequence[str], names: Mapping[str, str], *, pinned: bool = False
    ) -> None:
        self.cache, self.inputs, self.names, self._pinned = cache, inputs, names, pinned
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="activation-cache")
        self._expected: OrderedDict[str, Future[States]] = OrderedDict()

    def expect(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> None:
        """Begin to read the states of a `batch` that was collated from `rows`.

        Nothing is read where a row is not in the cache or the collator changed it; `take` then gives None.
        """
        try:
            keys = [row_key(row, self.inputs) for row in rows]
            if not keys or any(key not in self.cache for key in keys):
                return
            found = rows_in_batch(keys, batch, rows, self.names)
        except (DataError, TypeError, ValueError, KeyError):
            return
        self._expected[digest(batch, self.inputs)] = self._pool.submit(self._read, found)
        while len(self._expected) > MOST_EXPECTED:
            self._expected.popitem(last=False)

    def take(self, batch: Mapping[str, Any]) -> States | None:
        """The states of a batch that the model is called with; None when one of its rows is not in the cache."""
        with suppress(DamagedRow, KeyError):  # damaged, or found to be so since the batch was announced
            return self._take(batch)
        return None

    def _take(self, batch: Mapping[str, Any]) -> States | None:
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
        """End the thread and drop all announced batches."""
        self._expected.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


def rows_of(batch: Mapping[str, Any], inputs: Sequence[str]) -> list[dict[str, Tensor]] | None:
    """Recover the rows of a padded or packed batch, without padding: the features named in `inputs` of each row.

    None where that is not possible, because a feature is not one number for each token.
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
