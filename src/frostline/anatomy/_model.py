"""The parts of a model, as plain data: tensors, weight matrices, blocks, and what is around the blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Part(StrEnum):
    """The part of the model that a tensor belongs to, in the order from token ids to the output."""

    EMBEDDINGS = "embeddings"
    BLOCK = "block"
    FINAL_NORM = "final_norm"
    HEAD = "head"


class Role(StrEnum):
    """What a tensor does in its block. Every norm is `NORM`, also one inside the attention."""

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

    Over `n` tokens its forward pass takes `2 * n * copies * in_features * out_features * active` operations. For a head
    that reads one position of a sequence (a pooler, a classifier), `n` is the number of sequences.

    Attributes:
        name: path of the module; for a tensor that holds several experts, path of the parameter.
        weight: name of the parameter; for a tied head, the embedding's.
        in_features: width of its input.
        out_features: width of its output.
        part: the part of the model that it belongs to.
        block: number of its block; None outside the blocks.
        role: what it does in its block; None outside the blocks.
        active: the share of the tokens that each copy gets: 1, or (experts per token) / (number of experts).
        copies: how many matrices the tensor holds.
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
    """One transformer layer. `index` counts from the input. In an encoder-decoder, the encoder's blocks come first."""

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

    Every parameter is in exactly one of `embeddings`, `blocks`, `final_norm` and `head`. A tensor that several blocks
    use (a table of relative positions) is in `embeddings`.

    Attributes:
        vocab_size: number of rows of the token embedding.
        embedding_linears: the matrices that run before the blocks.
        head_linears: the matrices that run after the blocks. An LM head is one of them, also where it is `tied`.
        tied: whether the head's weight is the embedding's tensor.
        shifts_labels: whether the head's own loss compares a position with the next one's label, where each token has
            one, as a causal language model does.
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
    shifts_labels: bool

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor: those of the embeddings, the blocks in order, the final norm, the head."""
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
        """Whether the head is a language model's: it gives a score for each token of the vocabulary."""
        return any(linear.out_features == self.vocab_size for linear in self.head_linears)

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, as in `model.named_parameters()`. Raises `KeyError`."""
        return self._by_name[name]

    def block_of(self, name: str) -> Block | None:
        """The block that holds the tensor called `name`; None when no block holds it. Raises `KeyError`."""
        index = self.tensor(name).block
        return None if index is None else self.blocks[index]
