"""Read the hidden states that go into a block, and read or replace those that it returns.

B rows, T tokens, d hidden width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def hidden_of(output: Any) -> Tensor:
    """The hidden states [B, T, d] in the output of a block."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The output of a block with its hidden states replaced by `hidden` [B, T, d]."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hidden_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states [B, T, d] among the arguments of a block, or of its attention."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def device_of(model: nn.Module) -> torch.device:
    """The device on which a model computes: that of its first parameter that is in memory (not on the meta device)."""
    return next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
