"""Hidden states into a block and out of it.

B rows, T tokens, d hidden width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def hidden_of(output: Any) -> Tensor:
    """The hidden states [B, T, d] in what a block returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returned, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hidden_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states [B, T, d] among the arguments of a block, or of its attention."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: the device of its first parameter that is in memory."""
    return next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
