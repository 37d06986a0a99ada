"""Packed batches: rows that follow each other in one sequence and must not attend to each other.

Many models find the rows of such a batch by their position ids, which begin again at 0, and mask the attention between
rows. But attention over a sequence of N tokens still computes N x N products, which can cost more than padding. So here
the attention of each row is computed alone, with its part of the model's mask.

    H heads, G groups of key heads, T tokens of all rows together, h head width
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostline.core.errors import UnsupportedModel
from frostline.core.labels import IGNORED
from frostline.hooks import (
    FEWER_BITS,
    SAME_NUMBERS,
    attention_implementation,
    compare_training,
    computes_in_fewer_bits,
    device_of,
    hook_attention,
    packed_lengths,
    uses_attention_function,
)

Collate = Callable[[Sequence[dict[str, Any]]], Mapping[str, Any]]


def pack_rows(model: nn.Module, rows: Sequence[dict[str, Any]], collate: Collate) -> SplitAttention:
    """Let `model` compute the attention of packed batches row by row.

    A few rows are packed to check that their loss and gradients equal those of the rows computed one by one.

    Args:
        model: a decoder.
        rows: encoded rows of any lengths.
        collate: packs rows into one batch.

    Raises `UnsupportedModel` when the model does not keep the rows apart.
    """
    split = SplitAttention(model)
    reason = _difference(model, _a_few(rows), collate)
    if reason is not None:
        split.remove()
        raise UnsupportedModel(
            f"packing: {type(model).__name__} does not keep packed rows apart ({reason}): use packing=false and "
            "train_sampling_strategy=group_by_length"
        )
    return split


class SplitAttention:
    """Computes attention row by row in every forward pass of `model` over a packed batch, until `remove`.

    Modules that do not use transformers' attention functions are left as they are. So is flash attention, which
    separates the rows itself. A hook that needs the queries and keys of a whole batch must be added after this.
    """

    def __init__(self, model: nn.Module) -> None:
        self._lengths: list[int] = []
        self._handles: list[Any] = [model.register_forward_pre_hook(self._read_lengths, with_kwargs=True)]
        self._handles += [hook_attention(m, self._attend) for m in model.modules() if uses_attention_function(m)]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _read_lengths(self, _model: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._lengths = packed_lengths(inputs)
        # With a cache of keys and values, models treat a packed batch as one row.
        return args, {**inputs, "use_cache": False} if self._lengths else inputs

    def _attend(
        self,
        attend: Callable[..., tuple[Tensor, Tensor | None]],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query [1, H, T, h], key and value [1, G, T, h], attention_mask [1, 1, T, T] or None (causal)."""
        whole = query.shape[2] == key.shape[2] == sum(self._lengths)
        if not whole or attention_implementation(module) not in ("sdpa", "eager"):
            return attend(module, query, key, value, attention_mask, **options)
        rows = zip(*(torch.split(tensor, self._lengths, dim=2) for tensor in (query, key, value)), strict=True)
        outputs, start = [], 0
        for length, row in zip(self._lengths, rows, strict=True):
            end = start + length
            mask = None if attention_mask is None else attention_mask[..., start:end, start:end]
            outputs.append(attend(module, *row, mask, **options)[0])
            start = end
        return torch.cat(outputs, dim=1), None  # [1, T, H, h]


def _a_few(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three rows of about median length that have labels."""
    labelled = [row for row in rows if any(label != IGNORED for label in row["labels"][1:])]
    labelled.sort(key=lambda row: len(row["input_ids"]))
    middle = max(0, len(labelled) // 2 - 1)
    return labelled[middle : middle + 3]


def _difference(model: nn.Module, rows: Sequence[dict[str, Any]], collate: Collate) -> str | None:
    """Say in one line how training on packed `rows` differs from training on them one by one; None when it does not."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it has no argument position_ids"
    device = device_of(model)
    tolerance = FEWER_BITS if computes_in_fewer_bits(model, device) else SAME_NUMBERS

    def loss_of(batch: Mapping[str, Any]) -> Tensor:
        loss: Tensor = model(**{name: value.to(device) for name, value in batch.items()}).loss
        return loss

    def one_by_one() -> Tensor:
        batches = [collate([row]) for row in rows]
        counts = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
        shares = [count / sum(counts) * loss_of(batch) for count, batch in zip(counts, batches, strict=True)]
        return torch.stack(shares).sum()

    return compare_training(model, one_by_one, lambda: loss_of(collate(rows)), tolerance)
