"""Which tokens of a row are read.

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
"""In a row with many labelled tokens: read the token that predicts the first one, or all that predict one."""


@dataclass(frozen=True)
class ReadTokens:
    """The tokens of one stack that are read.

    Attributes:
        rows: [R], the batch row of each.
        positions: [R], its position.
        targets: [R], the token (or tag) that it predicts; None for labels of a row.
    """

    rows: Tensor
    positions: Tensor
    targets: Tensor | None = None

    def gather(self, hidden: Tensor) -> Tensor:
        """Their states [R, d], in float32, from [B, T, d]."""
        return hidden[self.rows, self.positions].detach().float()

    def per_row(self, values: Tensor, batch: int) -> Tensor:
        """The mean over each row's tokens, [..., rows with such tokens], from values [..., R]; `batch` is B."""
        counts = torch.bincount(self.rows, minlength=batch)
        sums = values.new_zeros(*values.shape[:-1], batch).index_add_(-1, self.rows, values)
        return (sums / counts)[..., counts > 0]


def reads_of(batch: Mapping[str, Any], anatomy: Anatomy, tokens: Tokens = "first") -> dict[str, ReadTokens]:
    """Stack -> the tokens of a batch that are read: those that predict its labels.

    Labels of a row (a class, a number, a mark for each class): the first token in an encoder, where its head reads too;
    else the last token. Labels of tokens: the position before the label where the head's loss shifts them, as in a
    causal language model; else the position of the label (tags, masked language models, the decoder of an
    encoder-decoder). In the encoder of an encoder-decoder, the last input token.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    mask = batch.get("attention_mask")
    ends = _ends(torch.ones_like(ids) if mask is None else mask)
    stacks = dict.fromkeys(block.stack for block in anatomy.blocks)
    if labels.dim() == 1 or labels.is_floating_point():
        whole = anatomy.encoder_decoder or "decoder" in stacks
        return dict.fromkeys(stacks, ends[1] if whole else ends[0])
    labels = labels[:, 1:] if anatomy.shifts_labels else labels
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
        return "the first token, where the head reads" if encoder else "the last input token"
    if not anatomy.shifts_labels and not anatomy.encoder_decoder:
        kind = "labelled" if anatomy.has_lm_head else "tagged"
        return f"every {kind} token" if tokens == "all" else f"the first {kind} token"
    read = "every token that predicts a labelled one"
    if tokens == "first":
        read = "the token that predicts the first labelled one"
    return f"{read} (encoder blocks: the last input token)" if anatomy.encoder_decoder else read


def _ends(mask: Tensor) -> tuple[ReadTokens, ReadTokens]:
    """The first and the last token of each row that is not padding. Padding may be on either side."""
    rows = torch.arange(len(mask), device=mask.device)
    return ReadTokens(rows, mask.long().argmax(1)), ReadTokens(rows, mask.long().cumsum(1).argmax(1))
