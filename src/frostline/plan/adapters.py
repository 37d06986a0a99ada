"""Modes that add an adapter to a block and leave its own tensors frozen, as pure data: one class per adapter kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from frostline.plan._mode import Adding, Targeted, TargetModules

MOST = 2**16
"""No rank, length or number of experts that anyone uses is larger, and its tensors would not fit in memory."""


class Lora(Targeted):
    """Low-rank updates beside the block's frozen matrices (Hu et al. 2021): W x + (alpha / r) B A x.

    Attributes:
        r: the rank.
        alpha: scale of the update, which is divided by r.
        dropout: of the input of A.
        targets: which matrices. `default`: what PEFT adapts for this model family (for most, queries and values), or
            all of the attention where PEFT does not know the family. A group: `attention`, `feed_forward`, `all`,
            `qkv` (the matrices that compute queries, keys and values), `down` (the output of the feed-forward),
            `outputs` (the outputs of attention and feed-forward). Or a list of module names.
        gate: multiply the update by a number between 0 and 1, which a linear layer computes for each token from the
            matrix's input (methods.md 4).
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["lora"] = "lora"
    r: int = Field(8, gt=0, le=MOST)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: TargetModules = "default"
    gate: bool = False
    lr_scale: float = Field(1.0, gt=0)

    def beside_block(self) -> Self:
        """On all matrices, unless it names some: on queries and values alone it learns much less (docs/LOG.md)."""
        return self if "targets" in self.model_fields_set else self.model_copy(update={"targets": "all"})


class Prefix(Adding):
    """Keys and values of `length` learned tokens in the block's self-attention (Li and Liang 2021; methods.md 4).

    Every token of the text attends to them. They have no positions.

    Attributes:
        length: how many tokens; 0 adds nothing.
        gate: a number g between 0 and 1, which a linear layer computes for each token from the attention's input.
            `prefix` multiplies the prefix's keys and values by g, as the paper does. `output` multiplies the prefix's
            attention weights by g before all weights are divided by their sum, so that g = 0 is the model without a
            prefix. `none`: no gate.
        init_std: standard deviation of the first keys and values.
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["prefix"] = "prefix"
    length: int = Field(20, ge=0, le=MOST)
    gate: Literal["prefix", "output", "none"] = "prefix"
    init_std: float = Field(0.02, ge=0)
    lr_scale: float = Field(1.0, gt=0)

    @property
    def adds(self) -> bool:
        return self.length > 0


class Bottleneck(Targeted):
    """A bottleneck adapter: Up(f(Down(x))) is added to the output of a matrix. Up starts at 0.

    Attributes:
        kind: `parallel` (He et al. 2022): x is the matrix's input; by default beside the matrices that compute queries,
            keys and values. `series` (Houlsby et al. 2019): x is the matrix's output; by default after the output
            matrices of attention and feed-forward.
        bottleneck: how many numbers lie between Down and Up.
        activation: f.
        bias: whether Down and Up have biases.
        scale: factor of what is added.
        dropout: of x.
        targets: which matrices, as for LoRA.
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["parallel", "series"]
    bottleneck: int = Field(256, gt=0, le=MOST)
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
    """MixLoRA (Li et al. 2024; methods.md 5): experts that share the frozen feed-forward, each with its own LoRA.

    Attributes:
        experts: how many experts.
        top_k: how many experts work on each token. A router without bias chooses them, and their shares sum to 1.
        r: the rank.
        alpha: scale of the update, which is divided by r.
        dropout: of the input of A.
        balance: weight of the loss that keeps the experts equally busy.
        attention: put LoRA of the same rank on the attention's matrices too.
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["mixture"] = "mixture"
    experts: int = Field(8, gt=1, le=MOST)
    top_k: int = Field(2, gt=0)
    r: int = Field(16, gt=0, le=MOST)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    balance: float = Field(0.01, ge=0)
    attention: bool = True
    lr_scale: float = Field(1.0, gt=0)

    @field_validator("top_k")
    @classmethod
    def _of_the_experts(cls, value: int, info: Any) -> int:
        if value > info.data.get("experts", value):
            raise ValueError(
                f"{value} is more than the {info.data['experts']} experts: use at most {info.data['experts']}"
            )
        return value


class Unipelt(Adding):
    """UniPELT (Mao et al. 2022; methods.md 10): gated LoRA, a gated prefix and a gated series adapter in one block.

    LoRA is on the matrices that compute queries and values, the adapter after the feed-forward. Each of the three has a
    gate: the sigmoid of a linear layer. Those of LoRA and prefix read the attention's input, the adapter's the
    feed-forward's.

    Attributes:
        r: the rank of LoRA.
        alpha: scale of LoRA's update, which is divided by r.
        length: how many tokens the prefix has.
        bottleneck: how many numbers lie between the adapter's two matrices.
        gates: one for each `token`; or, in an encoder, its average over the tokens of the `sequence`.
        lr_scale: factor of the run's learning rate.
    """

    mode: Literal["adapter"] = "adapter"
    kind: Literal["unipelt"] = "unipelt"
    r: int = Field(8, gt=0, le=MOST)
    alpha: float = Field(16.0, gt=0)
    length: int = Field(10, gt=0, le=MOST)
    bottleneck: int = Field(48, gt=0, le=MOST)
    gates: Literal["token", "sequence"] = "token"
    lr_scale: float = Field(1.0, gt=0)


class Peft(Targeted):
    """Any other method of PEFT that adapts modules, by PEFT's name: `ia3`, `dora`, `adalora`, `ln_tuning`, ...

    Attributes:
        method: its name in PEFT.
        options: options of PEFT's config for it.
        targets: which matrices, as for LoRA. `default`: what PEFT adapts for this model family.
        lr_scale: factor of the run's learning rate.
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


Adapter = Annotated[Bottleneck | Mixture | Peft | Unipelt, Field(discriminator="kind")]
"""The modes that a plan calls `adapter`. Their `kind` tells which one it is."""
AddingMode = Lora | Prefix | Adapter
"""The modes that add parameters to a block."""
