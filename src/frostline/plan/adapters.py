"""Modes that add to a block and leave its own tensors frozen, as pure data: a class for each adapter kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from frostline.plan._mode import Adding, Targeted, TargetModules


class Lora(Targeted):
    """Low-rank updates beside the block's frozen matrices (Hu et al. 2021): W x + (alpha / r) B A x.

    `targets` is which matrices: `default` is what PEFT adapts for this model family (query and value for
    most), or all of the attention's when PEFT does not know the family; or a group: `attention`, `feed_forward`,
    `all`, `qkv` (what makes queries, keys and values), `down` (what leads out of the feed-forward), `outputs` (what
    leads out of attention and feed-forward); or module names. `gate` scales the update by a number between 0 and 1,
    which a linear layer reads off the matrix's input, token by token (methods.md 4).
    """

    mode: Literal["lora"] = "lora"
    r: int = Field(8, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: TargetModules = "default"
    gate: bool = False
    lr_scale: float = Field(1.0, gt=0)


class Prefix(Adding):
    """Keys and values of `length` learned tokens in the block's self-attention (Li and Liang 2021; methods.md 4).

    Every token attends to them, none of them to anything; they have no positions. `gate` is a number g between 0 and
    1 that a linear layer reads off the attention's input, for each token that attends: `prefix` multiplies the
    prefix's keys and values by it (the paper's); `output` multiplies the prefix's share of the attention (before the
    shares are made to sum to 1), so that 0 is the model without prefix; `none`. `init_std` is the standard deviation
    of the first keys and values. A length of 0 adds nothing.
    """

    mode: Literal["prefix"] = "prefix"
    length: int = Field(20, ge=0)
    gate: Literal["prefix", "output", "none"] = "prefix"
    init_std: float = Field(0.02, ge=0)
    lr_scale: float = Field(1.0, gt=0)

    @property
    def adds(self) -> bool:
        return self.length > 0


class Bottleneck(Targeted):
    """Up(f(Down(.))), of `bottleneck` numbers in the middle, added to what a matrix gives.

    `parallel` adapters (He et al. 2022) read the matrix's input, and go by default beside those that make queries,
    keys and values; `series` adapters (Houlsby et al. 2019) read its output, and go after those that lead out of
    attention and feed-forward. `activation` is f. No biases unless `bias`. Up begins at 0.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["parallel", "series"]
    bottleneck: int = Field(256, gt=0)
    activation: Literal["tanh", "relu", "gelu", "silu"] = "tanh"
    bias: bool = False
    scale: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: TargetModules = "default"
    lr_scale: float = Field(1.0, gt=0)

    @property
    def label(self) -> str:
        return f"{self.kind} adapter"


class Mixture(Adding):
    """MixLoRA (Li et al. 2024; methods.md 5): the feed-forward as `experts`, each the frozen one with its own LoRA.

    A router without bias gives every token its `top_k` experts, whose shares are made to sum to 1. `balance` weighs
    the loss that keeps the experts equally busy. `attention` puts LoRA of the same rank on the attention's matrices.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["mixture"] = "mixture"
    experts: int = Field(8, gt=1)
    top_k: int = Field(2, gt=0)
    r: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    balance: float = Field(0.01, ge=0)
    attention: bool = True
    lr_scale: float = Field(1.0, gt=0)

    @field_validator("top_k")
    @classmethod
    def _of_the_experts(cls, value: int, info: Any) -> int:
        if value > info.data.get("experts", value):
            raise ValueError(f"{value} of {info.data['experts']} experts cannot be taken")
        return value


class Peft(Targeted):
    """Any other method of PEFT that adapts modules, by its name there: `ia3`, `dora`, `adalora`, `ln_tuning`, ...

    `options` are those of PEFT's config for it; `targets` as for LoRA, `default` what PEFT adapts by itself.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["peft"] = "peft"
    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    targets: TargetModules = "default"
    lr_scale: float = Field(1.0, gt=0)

    @property
    def label(self) -> str:
        return self.method


Adapter = Annotated[Bottleneck | Mixture | Peft, Field(discriminator="kind")]
"""The modes that a plan calls `adapter`, told apart by their `kind`."""
AddingMode = Lora | Prefix | Adapter
"""The modes that add parameters to a block."""
