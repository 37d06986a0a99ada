"""A call of a model, and the rows that it brings: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._bottom import NOT_READ_BELOW, Bottom
from frostline.bottom._feed import BRINGS_STATES, RowsInBatch, asks_below, rows_in_batch, rows_of
from frostline.core.errors import DataError
from frostline.hooks import says_how_packed


@dataclass(frozen=True)
class Call:
    """A call of the model whose rows are known by name: what was asked, and at which precision it was called."""

    rows: RowsInBatch
    real: Tensor | None
    precision: torch.dtype | None


def recognized(bottom: Bottom, batch: Mapping[str, Any]) -> Call | None:
    """The rows of a call of a model; None where they cannot be told, or the call is not one of plain rows.

    Args:
        bottom: of the model.
        batch: the arguments of the call by name.
    """
    if asks_below(bottom.training.model.config, batch) or any(batch.get(name) is not None for name in BRINGS_STATES):
        return None
    inputs = bottom.inputs
    known = {*inputs, *NOT_READ_BELOW, *bottom.training.label_names}
    others = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name not in known}
    if any(not says_how_packed(name, value, batch) for name, value in others.items()):
        return None
    try:
        rows = rows_of(batch, inputs)
        if not rows:
            return None
        found = rows_in_batch([bottom.key(row) for row in rows], batch, rows, bottom.names)
    except (DataError, TypeError, ValueError, KeyError):
        return None
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    real = mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else None
    return Call(found, real, autocast_dtype(ids.device))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
