"""Batches of rows, padded on the right to the longest one, with an attention mask.

B rows, C choices of a row, L tokens of the longest text
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
    """Rows of token ids as tensors.

    [B, L] for columns with a number per token; [B, C, L] where rows have several texts; [B] for columns with a number
    per row (a class label). Floats belong to the row and are never padded: [B], or [B, labels].

    Args:
        rows: rows with the model's inputs as columns: `input_ids`, `labels`, ... A mask is added where they have none.
        pad_id: the value that `input_ids` are padded with. Labels are padded with -100.
        type_id: the value that `token_type_ids` are padded with.
        pad_to: pad to this length instead of the longest row's.
    """
    padding = {"input_ids": pad_id, "token_type_ids": type_id, "labels": IGNORED}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns.setdefault("attention_mask", [_ones(ids) for ids in columns["input_ids"]])
    return {name: _column(values, padding.get(name, 0), pad_to) for name, values in columns.items()}


def _column(values: list[Any], fill: int, pad_to: int | None) -> Tensor:
    if _several(values[0]):
        texts = _column([text for value in values for text in value], fill, pad_to)
        return texts.view(len(values), -1, texts.shape[-1])
    tensors = [torch.as_tensor(value) for value in values]
    if tensors[0].is_floating_point():
        return torch.stack(tensors).float()
    if tensors[0].dim() == 0:
        return torch.stack(tensors).long()
    padded = pad_sequence([tensor.long() for tensor in tensors], batch_first=True, padding_value=fill)
    return padded if pad_to is None else pad(padded, (0, max(0, pad_to - padded.shape[1])), value=fill)


def _ones(ids: Any) -> Any:
    return [_ones(text) for text in ids] if _several(ids) else [1] * len(ids)


def _several(value: Any) -> bool:
    """Whether a row's value is a list for each of several texts."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


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
