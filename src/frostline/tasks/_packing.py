"""Batches without padding: the rows of a batch one after the other in a single sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackingCollator:
    """Joins encoded rows into `input_ids`, `position_ids` and `labels` of shape [1, total length].

    Positions begin at 0 with each row, by which a model tells the rows apart, and the first token of each row
    has no label, so that none is predicted from the row before.

    Attributes:
        keep_ids: keep `example_id` as a list of strings, and `row_starts` [rows], where each row begins.
            Models take neither, so it is off by default.
    """

    keep_ids: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from transformers import DataCollatorWithFlattening

        batch: dict[str, Any] = DataCollatorWithFlattening(return_tensors="pt")(list(rows))
        if self.keep_ids:
            batch["example_id"] = [row["example_id"] for row in rows]
            batch["row_starts"] = (batch["position_ids"][0] == 0).nonzero().flatten()
        return batch
