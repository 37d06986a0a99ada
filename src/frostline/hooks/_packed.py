"""Rows that are packed one after the other in one line of a batch.

T tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any


def packed_starts(batch: Mapping[str, Any]) -> list[int] | None:
    """The first token of each row of a packed batch: where its positions [1, T] are 0. None for padded rows."""
    positions = batch.get("position_ids")
    if positions is None or positions.shape[0] != 1 or batch.get("attention_mask") is not None:
        return None
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    return starts if len(starts) > 1 else None


def packed_lengths(batch: Mapping[str, Any]) -> list[int]:
    """The length of each row of a packed batch; empty for padded rows."""
    starts = packed_starts(batch)
    return [] if starts is None else [end - start for start, end in pairwise([*starts, batch["position_ids"].shape[1]])]
