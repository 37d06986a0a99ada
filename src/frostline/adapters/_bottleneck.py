"""Adapters with a bottleneck, beside a matrix or after it (methods.md 5).

... token dimensions (any number of them), in and out the matrix's widths, b the bottleneck
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapters._added import Branch
from frostline.adapters._kind import BesideMatrices
from frostline.adapters._layer import AdapterPart, Run
from frostline.anatomy import Linear
from frostline.plan import Bottleneck, Targets

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}

_KEEPS_BOTH = ("gelu", "silu")
"""Activations whose backward pass needs their input. The others need their output, which is kept in any case."""


class BottleneckKind(BesideMatrices[Bottleneck]):
    """A bottleneck adapter beside a matrix (`parallel`) or after it (`series`)."""

    @property
    def targets(self) -> Targets | tuple[str, ...]:
        if self.mode.targets != "default":
            return self.mode.targets
        return "qkv" if self.mode.kind == "parallel" else "outputs"

    def part(self, linear: Linear) -> AdapterPart:
        return BottleneckPart(linear.in_features, linear.out_features, self.mode)

    def branch(self, linear: Linear) -> Branch:
        mode, after = self.mode, self.mode.kind == "series"
        return Branch(
            reads=linear.out_features if after else linear.in_features,
            makes=mode.bottleneck,
            out=linear.out_features,
            kept=mode.bottleneck * (2 if mode.activation in _KEEPS_BOTH else 1),
            after=after,
            drops=mode.dropout > 0,
            biased=mode.bias,
        )


class BottleneckPart(AdapterPart):
    """W x + s Up(f(Down(x))) (parallel), or y + s Up(f(Down(y))) with y = W x (series). Up starts at 0."""

    by_row = True

    def __init__(self, in_features: int, out_features: int, options: Bottleneck) -> None:
        super().__init__()
        reads = in_features if options.kind == "parallel" else out_features
        self.down = nn.Linear(reads, options.bottleneck, bias=options.bias, dtype=torch.float32)
        self.up = nn.Linear(options.bottleneck, out_features, bias=options.bias, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        if options.bias:
            nn.init.zeros_(self.up.bias)
        self.activation = ACTIVATIONS[options.activation]
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.parallel = options.kind == "parallel"
        self.scale = options.scale

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = run(*args, **kwargs)
        read: Tensor = args[0] if self.parallel else output
        within: Tensor = self.activation(self.down(self.dropout(read.to(self.down.weight.dtype))))
        added: Tensor = self.factor() * self.up(within)
        return output + added.to(output.dtype)

    def factor(self) -> Tensor | float:
        """What is added is multiplied by it: a number, or one for each token, [..., 1]."""
        return self.scale

    def why_not_merged(self) -> str | None:
        return "an adapter with an activation cannot be written as one matrix"
