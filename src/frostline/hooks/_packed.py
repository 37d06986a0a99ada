"""Rows that are packed one after the other in one line of a batch.

T tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor


def packed_starts(batch: Mapping[str, Any]) -> list[int] | None:
    """The first token of each row of a packed batch: where its positions [1, T] are 0. None for padded rows.

    None also where positions do not count up by 1 from 0 in every row: there they say more than where rows begin.
    """
    positions = batch.get("position_ids")
    if positions is None or positions.shape[0] != 1 or batch.get("attention_mask") is not None:
        return None
    begins = positions[0] == 0
    starts: list[int] = begins.nonzero().flatten().tolist()
    if len(starts) < 2 or starts[0] != 0 or not bool((begins[1:] | (positions[0].diff() == 1)).all()):
        return None
    return starts


def packed_lengths(batch: Mapping[str, Any]) -> list[int]:
    """The length of each row of a packed batch; empty for padded rows."""
    starts = packed_starts(batch)
    return [] if starts is None else [end - start for start, end in pairwise([*starts, batch["position_ids"].shape[1]])]


def says_how_packed(name: str, value: Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether an argument beside the ids only repeats where the rows of a packed batch begin.

    Args:
        name: of the argument: `cu_seq_lens_q`, `cu_seq_lens_k` (where rows begin, and T) or `seq_idx` (the row of each
            token, [1, T]).
        value: its value.
        batch: with ids [1, T].
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape[0] != 1:
        return False
    starts = packed_starts(batch) or [0]
    if name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        return bool(value.flatten().tolist() == [*starts, ids.shape[1]])
    if name == "seq_idx" and value.shape == ids.shape:
        changes = (value[0].diff() != 0).nonzero().flatten() + 1
        return [0, *changes.tolist()] == starts
    return False
