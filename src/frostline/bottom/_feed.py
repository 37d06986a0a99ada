"""From the store to the step: batches know their rows, and a worker reads ahead.

B batch rows, T tokens, d hidden width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from frostline.bottom._cache import ActivationCache
from frostline.bottom._rows import AlteredRow, Features, find_spans, packed_starts, place, row_key
from frostline.core.errors import UserError
from frostline.core.labels import IGNORED

CACHED_ROWS = "cached_rows"


@dataclass(eq=False)
class CachedRows:
    """The rows of a batch: their keys, and for each stream where they lie in [B, T]."""

    keys: tuple[str, ...]
    spans: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    coming: Future[dict[str, Tensor]] | None = field(default=None, repr=False)


class CachingCollator:
    """Collates as `collate` does and adds which stored rows the batch holds, under `CACHED_ROWS`.

    The read starts here, in a thread: a loader collates a batch before the one in front of it is trained on.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[Features]], Mapping[str, Any]],
        names: Mapping[str, str],
        inputs: Sequence[str],
        reader: ReadAhead,
    ) -> None:
        self.collate, self.names, self.inputs, self.reader = collate, names, inputs, reader

    def __call__(self, rows: Sequence[Features]) -> dict[str, Any]:
        keys = tuple(row_key(row, self.inputs) for row in rows)
        self.reader.check(keys)
        batch = dict(self.collate(rows))
        try:
            cached = cached_rows(keys, batch, rows, self.names)
        except AlteredRow as error:
            raise UserError(f"{error}: take activation_cache: off") from None
        if get_worker_info() is None:
            self.reader.request(cached)
        return batch | {CACHED_ROWS: cached}


def cached_rows(keys: Sequence[str], batch: Mapping[str, Any], rows: Sequence[Features], names: Any) -> CachedRows:
    """Where the rows called `keys` lie in the collated `batch`."""
    spans = {stream: find_spans(batch, rows, name) for stream, name in names.items()}
    shapes = {stream: (batch[name].shape[0], batch[name].shape[1]) for stream, name in names.items()}
    return CachedRows(tuple(keys), spans, shapes)


def rows_of(batch: Mapping[str, Any], inputs: Sequence[str]) -> list[dict[str, Tensor]]:
    """The examples of a batch without their padding, or of a packed one: the features named in `inputs` of each."""
    ids = batch["input_ids"]
    names = [n for n in inputs if n != "labels" and isinstance(batch.get(n), Tensor) and batch[n].shape == ids.shape]
    if (starts := packed_starts(batch)) is not None:
        ends = [*starts[1:], ids.shape[1]]
        names.remove("position_ids")
        return [{name: batch[name][0, a:b].cpu() for name in names} for a, b in zip(starts, ends, strict=True)]
    mask = batch["attention_mask"] if "attention_mask" in names else torch.ones_like(ids)
    rows = [{name: batch[name][i][mask[i].bool()].cpu() for name in names} for i in range(len(ids))]
    if "labels" in inputs and "labels" in batch:
        for row, labels in zip(rows, batch["labels"], strict=True):
            row["labels"] = labels[labels != IGNORED].cpu()
    return rows


def stored_states(store: ActivationCache, rows: CachedRows) -> dict[str, Tensor]:
    """What `store` holds of `rows`, put where they lie in their batch: stream -> [B, T, d] on the CPU."""
    found = [store.read(key) for key in rows.keys]
    return {
        stream: place([own[stream] for own in found], spans, rows.shapes[stream])
        for stream, spans in rows.spans.items()
    }


class ReadAhead:
    """Reads the states of batches from a store, in a thread, before they are asked for."""

    def __init__(self, store: ActivationCache, pinned: bool = False) -> None:
        self.store, self.pinned = store, pinned
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="activation-cache")

    def check(self, keys: Sequence[str]) -> None:
        """Raises `UserError` when the store lacks one of the rows called `keys`."""
        for key in keys:
            if key not in self.store:
                raise UserError(
                    "an example is not the one that went through the caching pass: a data set whose examples change "
                    "while training needs activation_cache: off"
                )

    def request(self, rows: CachedRows) -> None:
        """Begin to read the states of `rows`, which the store has."""
        rows.coming = self._pool.submit(self._read, rows)

    def take(self, rows: CachedRows) -> dict[str, Tensor]:
        """The states of `rows`, stream -> [B, T, d] on the CPU."""
        coming, rows.coming = rows.coming, None
        return self._read(rows) if coming is None else coming.result()

    def _read(self, rows: CachedRows) -> dict[str, Tensor]:
        states = stored_states(self.store, rows)
        return {stream: value.pin_memory() for stream, value in states.items()} if self.pinned else states

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
