"""The gate of HLPT, for LoRA and for prefixes (methods.md 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Gate(nn.Linear):
    """One number per token, computed from its vector by a linear layer. Weights start Kaiming-uniform [inferred]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [..., 1] for tokens [..., width]. The gate is the sigmoid of the logit."""
        return functional.linear(tokens.to(self.weight.dtype), self.weight, self.bias)
