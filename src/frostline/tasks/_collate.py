"""Batches of rows, padded on the right to the longest one, with an attention mask.

B rows, L tokens of the longest one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from frostline.core.labels import IGNORED


def pad_rows(
    rows: Sequence[Mapping[str, Any]], pad_id: int, *, type_id: int = 0, pad_to: int | None = None
) -> dict[str, Tensor]:
    """Rows of token ids as tensors: [B, L] for columns with a number per token, [B] for one per row (a class label).

    Args:
        rows: rows with the model's inputs as columns: `input_ids`, `labels`, ... A mask is added where they have none.
        pad_id: the value that `input_ids` are padded with. Labels are padded with -100.
        type_id: the value that `token_type_ids` are padded with.
        pad_to: pad to this length instead of the longest row's.
    """
    padding = {"input_ids": pad_id, "token_type_ids": type_id, "labels": IGNORED}
    columns = {name: [torch.as_tensor(row[name], dtype=torch.long) for row in rows] for name in rows[0]}
    columns.setdefault("attention_mask", [torch.ones_like(ids) for ids in columns["input_ids"]])
    batch = {}
    for name, values in columns.items():
        if values[0].dim() == 0:
            batch[name] = torch.stack(values)
            continue
        fill = padding.get(name, 0)
        padded = pad_sequence(values, batch_first=True, padding_value=fill)
        batch[name] = padded if pad_to is None else pad(padded, (0, max(0, pad_to - padded.shape[1])), value=fill)
    return batch


@dataclass(frozen=True)
class Collator:
    """Pads encoded rows into a batch (`pad_rows`).

    Attributes:
        tokenizer: gives the padding values.
        pad_to: pad every batch to this length instead of its longest row's.
        keep_ids: keep `example_id` as a list of strings. It is not an input of models, so by default it is dropped.
    """

    tokenizer: Any
    pad_to: int | None = None
    keep_ids: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        inputs = [{name: value for name, value in row.items() if name != "example_id"} for row in rows]
        pad_id, type_id = self.tokenizer.pad_token_id, self.tokenizer.pad_token_type_id
        batch: dict[str, Any] = pad_rows(inputs, pad_id, type_id=type_id, pad_to=self.pad_to)
        if self.keep_ids:
            batch["example_id"] = [row["example_id"] for row in rows]
        return batch
