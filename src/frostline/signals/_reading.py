"""Which token of a row is read.

B batch rows, T tokens, R tokens that are read, d hidden width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from frostline.anatomy import Anatomy
from frostline.core.labels import IGNORED

Tokens = Literal["first", "all"]
"""Where a row has many labelled tokens: read where the first is predicted, or wherever one is."""


@dataclass(frozen=True)
class ReadTokens:
    """The tokens of one stack that are read: batch row and position, [R] each; `targets` are what they predict."""

    rows: Tensor
    positions: Tensor
    targets: Tensor | None = None

    def gather(self, hidden: Tensor) -> Tensor:
        """Their states [R, d] in float32, of [B, T, d]."""
        return hidden[self.rows, self.positions].detach().float()

    def per_row(self, values: Tensor, batch: int) -> Tensor:
        """The mean over each row's tokens, [..., rows that are read], of [..., R] values in a batch of `batch`."""
        counts = torch.bincount(self.rows, minlength=batch)
        sums = values.new_zeros(*values.shape[:-1], batch).index_add_(-1, self.rows, values)
        return (sums / counts)[..., counts > 0]


def reads_of(batch: Mapping[str, Any], anatomy: Anatomy, tokens: Tokens = "first") -> dict[str, ReadTokens]:
    """For each stack of blocks the tokens that are read in a batch: those that predict its labels.

    Class labels: an encoder's first token, on which its head stands; else the last token. Token labels: in a
    decoder the position before a labelled token, in an encoder-decoder's decoder that of the label itself; an
    encoder-decoder's encoder is read at the last token of its input.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    mask = batch.get("attention_mask")
    ends = _ends(torch.ones_like(ids) if mask is None else mask)
    stacks = dict.fromkeys(block.stack for block in anatomy.blocks)
    if labels.dim() == 1:
        whole = anatomy.encoder_decoder or "decoder" in stacks
        return dict.fromkeys(stacks, ends[1] if whole else ends[0])
    labels = labels if anatomy.encoder_decoder else labels[:, 1:]
    wanted = labels != IGNORED
    if tokens == "first":
        wanted = wanted & (wanted.cumsum(1) == 1)
    rows, positions = wanted.nonzero(as_tuple=True)
    written = ReadTokens(rows, positions, labels[rows, positions])
    return {stack: ends[1] if anatomy.encoder_decoder and stack == "encoder" else written for stack in stacks}


def token_text(anatomy: Anatomy, *, classes: bool, tokens: Tokens) -> str:
    """Which token `reads_of` reads, in words."""
    if classes:
        encoder = not anatomy.encoder_decoder and all(block.stack == "encoder" for block in anatomy.blocks)
        return "the first token, on which the head stands" if encoder else "the last input token"
    read = "every token that predicts a labelled one"
    if tokens == "first":
        read = "the token that predicts the first labelled one"
    return f"{read} (encoder blocks: the last input token)" if anatomy.encoder_decoder else read


def _ends(mask: Tensor) -> tuple[ReadTokens, ReadTokens]:
    """The first and the last token of each row that is no padding, on whichever side that is."""
    rows = torch.arange(len(mask), device=mask.device)
    return ReadTokens(rows, mask.long().argmax(1)), ReadTokens(rows, mask.long().cumsum(1).argmax(1))
