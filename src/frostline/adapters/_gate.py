"""The gate of hybrid tuning, for LoRA and for prefixes (methods.md 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Gate(nn.Linear):
    """A number per token, read off its vector by a linear layer that starts Kaiming-uniform [inferred]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [..., 1] of tokens [..., width]: the gate is their sigmoid."""
        return functional.linear(tokens.to(self.weight.dtype), self.weight, self.bias)
