"""What the activation cache of a training holds: the rows of its data sets, by their content."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from frostline.bottom._bottom import Amount, Bottom, Declined, Training
from frostline.bottom._rows import find_spans, holds_several, holds_tokens
from frostline.bottom._streaming import Streaming


class Contents(Bottom):
    """The rows of a training by key, and how they go through its frozen bottom.

    Raises `Declined`, `CannotCut` or `AlteredRow` when training from a cache would not be the same training.

    Args:
        training: what trains, and on which rows.
        streaming: the bottom where it is read block by block; None where it is in memory.
        root: the folder in which all activation caches lie.
        rows: the rows by key, where they are known from another cut of the same model.
    """

    def __init__(
        self, training: Training, streaming: Streaming | None, root: Path, rows: dict[str, Any] | None = None
    ) -> None:
        super().__init__(training, streaming, root)
        self.rows = self._rows() if rows is None else rows
        self._check_collator()

    @cached_property
    def row_bytes(self) -> dict[str, int]:
        """The bytes of each row in the cache, by key."""
        return {key: self.bytes_of(row) for key, row in self.rows.items()}

    def check_rows(self) -> dict[str, Any]:
        """The check rows by key: the longest row, the shortest, and two others."""
        by_length = sorted(self.rows, key=self.row_bytes.__getitem__)
        return {key: self.rows[key] for key in (by_length[-1], by_length[0], *list(self.rows)[:2])}

    def amount(self, missing: int, above: int = 0) -> Amount:
        """How much there is to cache.

        Args:
            missing: rows that are not in the cache yet.
            above: a lower boundary whose states are there.
        """
        count = len(self.rows)
        mean = sum(map(self.passage.length, self.rows.values())) / count
        return Amount(count, mean, missing, sum(self.row_bytes.values()), self.cut.boundary, above)

    def _rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for dataset in self.training.datasets:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
                raise Declined("the rows come as a stream, and may change every epoch")
            for index in range(len(dataset)):
                row = dataset[index]
                if not isinstance(row, Mapping) or "input_ids" not in row:
                    raise Declined("the rows have no input_ids")
                if any(holds_several(row.get(name)) for name in self.names.values()):
                    raise Declined("a row holds several texts, as for multiple choice")
                if "labels" in self.names.values() and not holds_tokens(row, "labels"):
                    raise Declined("the labels are not the tokens that the decoder reads")
                rows[self.key(row)] = row
            if len(dataset) and self.key(dataset[0]) not in rows:
                raise Declined("the rows change every time they are read")
        if not rows:
            raise Declined("the training data has no rows")
        return rows

    def _check_collator(self) -> None:
        features = list(self.check_rows().values())
        batch = self.passage.batch(features)
        for name in set(self.names.values()):
            if name not in batch:
                raise Declined(f"the collator gives batches without {name}")
            find_spans(batch, features, name)
