"""Gated LoRA: a low-rank update whose strength each token decides (methods.md 4).

... tokens in any arrangement, in and out the matrix's widths, r the rank
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from frostline.adapters._layer import Part, Run
from frostline.plan import Lora


class Gate(nn.Linear):
    """A number per token, read off its vector by a linear layer that starts Kaiming-uniform [inferred]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [..., 1] of tokens [..., width]: the gate is their sigmoid."""
        return functional.linear(tokens.to(self.weight.dtype), self.weight, self.bias)


class LowRank(Part):
    """g (alpha / r) B A x beside W x, with g = sigmoid(gate(x)), or 1 without a gate. B begins at 0."""

    def __init__(self, in_features: int, out_features: int, options: Lora) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(options.r, in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(out_features, options.r, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.gate = Gate(in_features) if options.gate else None
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.scale = options.alpha / options.r

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = run(*args, **kwargs)
        inputs: Tensor = args[0]
        low = functional.linear(self.dropout(inputs.to(self.A.dtype)), self.A)
        if self.gate is not None:
            low = low * torch.sigmoid(self.gate(inputs))
        return output + (self.scale * functional.linear(low, self.B)).to(output.dtype)

    def update(self, module: nn.Module) -> Tensor:
        if self.gate is not None:
            return super().update(module)
        update = self.scale * (self.B @ self.A)
        return update.T if isinstance(module, Conv1D) else update

    def why_not_merged(self) -> str | None:
        return None if self.gate is None else "the gate of its LoRA depends on the input"
