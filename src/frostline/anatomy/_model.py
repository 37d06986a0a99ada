"""What a model is made of, as plain data: tensors, weight matrices, blocks and the parts around them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Part(StrEnum):
    """Where a tensor lies on the way from token ids to the model's output."""

    EMBEDDINGS = "embeddings"
    BLOCK = "block"
    FINAL_NORM = "final_norm"
    HEAD = "head"


class Role(StrEnum):
    """What a tensor does within its block. Every normalisation is `NORM`, those inside attention too."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"
    NORM = "norm"
    OTHER = "other"


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor, named as in `model.named_parameters()` (a tied tensor has one entry)."""

    name: str
    shape: tuple[int, ...]
    part: Part
    block: int | None
    role: Role | None
    is_bias: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Linear:
    """One weight matrix that multiplies token vectors, [out, in] (or `copies` of them in one tensor).

    Over `n` tokens its forward pass takes `2 * n * copies * in_features * out_features * active` operations.
    `name` is the module's path; for a tensor that holds several experts, the parameter's. `weight` is the
    parameter's name, which for a tied head is the embedding's. `active` is the share of the tokens that pass
    each copy: 1, or (experts per token) / (number of experts). Heads that read only one position of a
    sequence (a pooler, a classifier) count as 1 here: the number of tokens is then the number of sequences.
    """

    name: str
    weight: str
    in_features: int
    out_features: int
    part: Part
    block: int | None
    role: Role | None
    active: float = 1.0
    copies: int = 1


@dataclass(frozen=True)
class Block:
    """One transformer layer. `index` counts from the input; a decoder's blocks follow its encoder's."""

    index: int
    name: str
    stack: str
    tensors: tuple[Tensor, ...]
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)


@dataclass(frozen=True)
class Anatomy:
    """Where a model keeps its embeddings, ordered blocks, final norm and head.

    Every parameter lies in exactly one of `embeddings`, `blocks`, `final_norm`, `head`. A tensor that serves
    several blocks (a table of relative positions) is among the embeddings. `head_linears` is what multiplies
    after the blocks, the LM head also when its weight is the embedding's (`tied`). `vocab_size` is the number
    of rows of the token embedding.
    """

    model_class: str
    model_type: str
    hidden_size: int
    vocab_size: int
    num_heads: int
    blocks: tuple[Block, ...]
    embeddings: tuple[Tensor, ...]
    final_norm: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    embedding_linears: tuple[Linear, ...]
    head_linears: tuple[Linear, ...]
    tied: bool
    encoder_decoder: bool

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor: the embeddings', the blocks' in order, the final norm's, the head's."""
        in_blocks = (tensor for block in self.blocks for tensor in block.tensors)
        return (*self.embeddings, *in_blocks, *self.final_norm, *self.head)

    @cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every weight matrix, in the order of `tensors`."""
        in_blocks = (linear for block in self.blocks for linear in block.linears)
        return (*self.embedding_linears, *in_blocks, *self.head_linears)

    @property
    def total_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def has_lm_head(self) -> bool:
        """Whether the head scores the vocabulary, as a pretrained language model's does."""
        return any(linear.out_features == self.vocab_size for linear in self.head_linears)

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, as in `model.named_parameters()`. Raises `KeyError`."""
        return self._by_name[name]

    def block_of(self, name: str) -> Block | None:
        """The block that holds the tensor called `name`; None when it lies outside. Raises `KeyError`."""
        index = self.tensor(name).block
        return None if index is None else self.blocks[index]
