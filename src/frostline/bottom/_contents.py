"""What the activation cache of a training holds: the rows of its data sets, by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from frostline.bottom._bottom import Amount, Bottom, Declined, Training
from frostline.bottom._caching_pass import CachingPass
from frostline.bottom._cut import last_blocks
from frostline.bottom._known import KnownRows, is_on_disk
from frostline.bottom._rows import Features, find_spans, holds_several, holds_tokens
from frostline.bottom._shards import row_bytes
from frostline.bottom._streaming import Streaming


class Contents(Bottom):
    """The rows of a training by key, and how they go through its frozen bottom. The arguments are those of `Bottom`.

    Raises `Declined` or `CannotCut` when training from a cache would not be the same training; `rows` raise them, and
    `AlteredRow`, when they are first asked for.
    """

    def __init__(
        self, training: Training, streaming: Streaming | None, root: Path, rows: KnownRows | None = None
    ) -> None:
        super().__init__(training, streaming, root)
        self._given = rows  # those of another cut of the same model

    @cached_property
    def rows(self) -> KnownRows:
        """All rows, by key."""
        rows = self._rows() if self._given is None else self._given
        self._check_collator(rows)
        return rows

    @cached_property
    def row_bytes(self) -> dict[str, int]:
        """The bytes of each row in the cache, by key."""
        return self._bytes_of(self.rows)

    def _bytes_of(self, rows: KnownRows) -> dict[str, int]:
        if len(self._streams) > 1:
            return {key: self.bytes_of(row) for key, row in rows.items()}
        return {key: self._of_tokens(rows.length(key)) for key in rows}

    def _of_tokens(self, tokens: int) -> int:
        return row_bytes(self._streams, dict.fromkeys(self._streams, tokens))

    def check_rows(self) -> dict[str, Any]:
        """The check rows by key: the longest row, the shortest, and two others."""
        return _check_rows(self.rows, self.row_bytes)

    def at_best(self) -> Amount | None:
        """`amount` with as few missing rows as there may be, where that is known before any row is read."""
        datasets = self.training.datasets
        if len(self._streams) > 1 or not datasets or not all(map(is_on_disk, datasets)):
            return None
        count, tokens = sum(map(len, datasets)), sum(sum(dataset.lengths) for dataset in datasets)
        missing = 0 if len(self.cache) else count  # one row of the cache may be many of these, which repeat each other
        return Amount(count, tokens / count, missing, self._of_tokens(tokens), self.cut.boundary)

    def fill(self, rows: KnownRows, progress: Callable[[int, int], None]) -> int:
        """Let those of `rows` whose states are missing pass the bottom. Gives how many were missing.

        Other processes may do a part of them: at the end all of them are there.

        Args:
            rows: some of `self.rows`.
            progress: called with the number of missing rows that are done, and that of all.
        """
        cache, streaming = self.cache, self.streaming
        missing = cache.missing(rows)
        if streaming is None:
            self.caching_pass(rows).run(lambda done: progress(done, len(missing)))
        elif missing:
            with cache.filling(), cache.claimed(f"levels{self.levels}", wait=True):
                if left := cache.missing(missing):
                    streaming.caching_pass(self.cut, rows.some(left), self.passage_at, self.cache_at, progress)
        return len(missing)

    def caching_pass(self, rows: Mapping[str, Features]) -> CachingPass:
        """What lets rows pass the bottom."""
        return CachingPass(self.training.model, last_blocks(self.cut), self.passage, rows, self.cache)

    def amount(self, missing: int, above: int = 0) -> Amount:
        """How much there is to cache.

        Args:
            missing: rows that are not in the cache yet.
            above: a lower boundary whose states are there.
        """
        count = len(self.rows)
        mean = sum(map(self.rows.length, self.rows)) / count
        return Amount(count, mean, missing, sum(self.row_bytes.values()), self.cut.boundary, above)

    def _rows(self) -> KnownRows:
        rows = KnownRows(self.passage.length)
        for dataset in self.training.datasets:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
                raise Declined("the rows come as a stream, and may change every epoch")
            each = iter(dataset) if is_on_disk(dataset) else (dataset[index] for index in range(len(dataset)))
            for index, row in enumerate(each):
                if not isinstance(row, Mapping) or "input_ids" not in row:
                    raise Declined("the rows have no input_ids")
                if any(holds_several(row.get(name)) for name in self.names.values()):
                    raise Declined("a row holds several texts, as for multiple choice")
                if "labels" in self.names.values() and not holds_tokens(row, "labels"):
                    raise Declined("the labels are not the tokens that the decoder reads")
                rows.add(self.key(row), row, dataset, index)
            if len(dataset) and self.key(dataset[0]) not in rows:
                raise Declined("the rows change every time they are read")
        if not rows:
            raise Declined("the training data has no rows")
        return rows

    def _check_collator(self, rows: KnownRows) -> None:
        features = list(_check_rows(rows, self._bytes_of(rows)).values())
        batch = self.passage.batch(features)
        for name in set(self.names.values()):
            if name not in batch:
                raise Declined(f"the collator gives batches without {name}")
            find_spans(batch, features, name)


def _check_rows(rows: KnownRows, sizes: Mapping[str, int]) -> dict[str, Any]:
    by_length = sorted(rows, key=sizes.__getitem__)
    return {key: rows[key] for key in (by_length[-1], by_length[0], *list(rows)[:2])}
