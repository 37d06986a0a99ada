"""LoRA. PEFT makes plain LoRA, on the blocks that the plan names. LoRA with a gate is made here.

With a gate, each token decides how strong its low-rank update is (methods.md 4).

... token dimensions (any number of them), in and out the matrix's widths, r the rank
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from frostline.adapters._added import Branch
from frostline.adapters._gate import Gate
from frostline.adapters._kind import BesideMatrices, PeftAdapter
from frostline.adapters._layer import AdapterPart, Run
from frostline.adapters._targets import transposed
from frostline.anatomy import Anatomy, Block, Linear
from frostline.plan import Lora

T = TypeVar("T")


class LoraKind(BesideMatrices[Lora]):
    """W x + g (alpha / r) B A x, with A [r, in], B [out, r]. The gate g is 1 where the mode has none."""

    def part(self, linear: Linear) -> AdapterPart:
        return LowRank(linear.in_features, linear.out_features, self.mode)

    def branch(self, linear: Linear) -> Branch:
        mode = self.mode
        kept = 2 * mode.r + 1 if mode.gate else mode.r  # with a gate: A x, the gate itself, and their product
        sizes = linear.in_features, mode.r, linear.out_features
        return Branch(*sizes, kept, gated=mode.gate, drops=mode.dropout > 0)

    @property
    def of_peft(self) -> bool:
        return not self.mode.gate

    @property
    def lora_scale(self) -> float | None:
        return None if self.mode.gate else self.mode.alpha / self.mode.r

    @classmethod
    def peft_adapters(cls, members: Sequence[tuple[Self, Block]], anatomy: Anatomy) -> list[PeftAdapter]:
        options = {m.name: kind.mode for kind, block in members for m in kind.linears(block, anatomy)}
        first = members[0][0].mode
        config = LoraConfig(
            r=first.r,
            lora_alpha=first.alpha,
            lora_dropout=first.dropout,
            target_modules=list(options),
            rank_pattern=_pattern({name: mode.r for name, mode in options.items()}, first.r),
            alpha_pattern=_pattern({name: mode.alpha for name, mode in options.items()}, first.alpha),
            fan_in_fan_out=transposed(members[0][1]),
        )
        dropouts = {name: mode.dropout for name, mode in options.items()}
        return [PeftAdapter(config, tuple(options), seeded="lora", finish=partial(_set_dropouts, dropouts))]


class LowRank(AdapterPart):
    """g (alpha / r) B A x beside W x, with g = sigmoid(gate(x)), or 1 without a gate. B starts at 0."""

    by_row = True

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
        # The factor multiplies r numbers of a token here, instead of `out` numbers after B.
        return output + functional.linear(low * self.factor(inputs), self.B).to(output.dtype)

    def factor(self, inputs: Tensor) -> Tensor | float:
        """What the update is multiplied by: a number, or one for each token, [..., 1]."""
        return self.scale if self.gate is None else self.scale * torch.sigmoid(self.gate(inputs))

    def update(self, module: nn.Module) -> Tensor:
        if self.gate is not None:
            return super().update(module)
        update = self.scale * (self.B.float() @ self.A.float())
        return update.T if isinstance(module, Conv1D) else update

    def why_not_merged(self) -> str | None:
        return None if self.gate is None else "the gate of its LoRA depends on the input"


def _set_dropouts(dropouts: Mapping[str, float], model: nn.Module, _: PeftModel) -> None:
    """Set each module's own dropout: a PEFT adapter has one value for all modules, a plan has one per block."""
    for name, share in dropouts.items():
        layer: Any = model.get_submodule(name)
        dropout = nn.Dropout(share) if share else nn.Identity()
        layer.lora_dropout = nn.ModuleDict(dict.fromkeys(layer.lora_dropout, dropout))


def _pattern(values: Mapping[str, T], default: T) -> dict[str, T]:
    """The values that differ from the default. PEFT reads keys as patterns, so they are escaped to match one path."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != default}
