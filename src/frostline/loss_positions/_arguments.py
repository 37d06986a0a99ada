"""Reduce the arguments of a block to the loss positions.

B rows, T tokens, S keys, H heads, M loss positions of a row, d hidden width, h head width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache

from frostline.loss_positions._positions import Positions


def gather_arguments(arguments: Mapping[str, Any], positions: Positions) -> dict[str, Any]:
    """The arguments for a pass over the loss positions alone.

    Whatever has one entry for each query is gathered at these positions: hidden states [B, T, d], rotary tables
    [1 or B, T, h], position ids [1 or B, T], and the query dimension of masks and biases [1 or B, 1 or H, T, S].
    Whatever belongs to the keys stays complete.
    """
    return {name: _gather(name, value, positions) for name, value in arguments.items()}


def without_caches(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without a cache of keys and values, which would store those of both passes."""
    return {name: None if isinstance(value, Cache) else value for name, value in arguments.items()}


def _gather(name: str, value: Any, positions: Positions) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_gather(name, item, positions) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 4:
        if value.shape[2] != positions.length:
            return value
        return positions.gather(value.transpose(1, 2)).transpose(1, 2)
    # A mask without a query dimension belongs to the keys. So does the output of the encoder.
    of_keys = "mask" in name or name.startswith("encoder_")
    if value.dim() in (2, 3) and value.shape[1] == positions.length and not of_keys:
        return positions.gather(value)
    return value
