"""Packing: batches without padding. The rows of a batch follow each other in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackingCollator:
    """Joins encoded rows into `input_ids`, `position_ids` and `labels` of shape [1, total length].

    Positions start at 0 in each row, and models find the rows by this. The first token of each row has no label, so
    that it is not predicted from the row before.

    Attributes:
        keep_ids: keep `example_id` as a list of strings, and add `row_starts` [rows], where each row starts. They are
            not inputs of models, so by default they are left out.
    """

    keep_ids: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from transformers import DataCollatorWithFlattening

        batch: dict[str, Any] = DataCollatorWithFlattening(return_tensors="pt")(list(rows))
        if self.keep_ids:
            batch["example_id"] = [row["example_id"] for row in rows]
            batch["row_starts"] = (batch["position_ids"][0] == 0).nonzero().flatten()
        return batch
