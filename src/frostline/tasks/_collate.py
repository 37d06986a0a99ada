"""Batches: padded on the right to the longest row, with an attention mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frostline.core.labels import IGNORED


@dataclass(frozen=True)
class Collator:
    """Pads encoded rows into tensors of shape [batch, length].

    Labels of tokens are padded with -100; a class label becomes one number a row, shape [batch].

    Attributes:
        pad_to: pad every batch to this length instead of its longest row.
        keep_ids: keep `example_id` as a list of strings. Models do not take it, so it is off by default.
    """

    tokenizer: Any
    pad_to: int | None = None
    keep_ids: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

        padding = {"padding": "max_length" if self.pad_to else "longest", "max_length": self.pad_to}
        inputs = [{name: value for name, value in row.items() if name != "example_id"} for row in rows]
        side, self.tokenizer.padding_side = self.tokenizer.padding_side, "right"
        try:
            if isinstance(inputs[0]["labels"], list):
                collate = DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED, **padding)
            else:
                collate = DataCollatorWithPadding(self.tokenizer, **padding)
            batch = dict(collate(inputs))
        finally:
            self.tokenizer.padding_side = side
        if self.keep_ids:
            batch["example_id"] = [row["example_id"] for row in rows]
        return batch
