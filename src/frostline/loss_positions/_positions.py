"""The loss positions: which positions of the last block's output the loss reads. A rule gives them for any batch.

B rows, T tokens, M largest number of loss positions of a row, d hidden width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frostline.core.labels import IGNORED


class LossRule(StrEnum):
    """Where the loss positions are.

    At the labels (`LABELS`), one position before each label (`BEFORE_LABELS`), at the first token (`FIRST`), at the
    last one (`LAST_TOKEN`, `LAST_ATTENDED`: see `positions_read`), or everywhere (`ALL`).
    """

    LABELS = "labels"
    BEFORE_LABELS = "before_labels"
    FIRST = "first"
    LAST_TOKEN = "last_token"
    LAST_ATTENDED = "last_attended"
    ALL = "all"

    @property
    def by_label(self) -> bool:
        return self in (LossRule.LABELS, LossRule.BEFORE_LABELS)


def one_label_a_token(labels: Any) -> bool:
    """Whether `labels` are [B, T]: one for each token, not one class or number for each row."""
    return isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def targets(rule: LossRule, inputs: Mapping[str, Any]) -> Tensor:
    """The label that each position predicts, [B, T], `IGNORED` where there is none."""
    labels: Tensor = inputs["labels"]
    if rule is LossRule.LABELS:
        return labels
    shifted: Tensor | None = inputs.get("shift_labels")
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED) if shifted is None else shifted


def positions_read(rule: LossRule, inputs: Mapping[str, Any], pad_token_id: int | None) -> Tensor | None:
    """The loss positions of a batch as a mask [B, T]; None when the batch does not tell.

    `LAST_TOKEN` is the rightmost token that is not the padding token, as in transformers' classifiers. `LAST_ATTENDED`
    is the rightmost one in the attention mask. The two differ where a text itself ends with the padding token.

    Args:
        rule: where the loss positions are.
        inputs: the batch.
        pad_token_id: of the model.
    """
    if rule.by_label:
        return targets(rule, inputs) != IGNORED
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or (mask is None and rule is LossRule.LAST_ATTENDED):
        return None
    if rule is LossRule.ALL:
        return torch.ones_like(ids, dtype=torch.bool)
    steps = torch.arange(ids.shape[1], device=ids.device)
    if rule is LossRule.LAST_TOKEN:
        counted = torch.ones_like(ids) if pad_token_id is None else ids != pad_token_id
        chosen = (steps * counted).argmax(1)
    elif rule is LossRule.LAST_ATTENDED:
        chosen = (steps * (mask != 0)).argmax(1)
    else:
        chosen = torch.zeros_like(ids[:, 0])
    return steps == chosen[:, None]


@dataclass(frozen=True)
class Positions:
    """Loss positions as indices: `index` [B, M], of which only those in `valid` [B, M] count, in rows of `length` T."""

    index: Tensor
    valid: Tensor
    length: int

    @classmethod
    def of(cls, read: Tensor) -> Positions:
        """The positions where the mask `read` [B, T] is true. A row with fewer than M of them repeats its first one."""
        most = int(read.sum(1).max())
        index = read.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        valid = read.gather(1, index)
        return cls(torch.where(valid, index, index[:, :1]), valid, read.shape[1])

    @cached_property
    def flat(self) -> Tensor:
        """`index` as an index into all rows joined to one sequence, [B * M]."""
        starts = torch.arange(len(self.index), device=self.index.device) * self.length
        return (self.index + starts[:, None]).flatten()

    def gather(self, states: Tensor) -> Tensor:
        """The entries of `states` [B or 1, T, ...] at the loss positions, [B, M, ...]."""
        rows, most = self.index.shape
        if states.shape[0] == 1 != rows:
            return states[0][self.index]
        return states.flatten(0, 1).index_select(0, self.flat).view(rows, most, *states.shape[2:])

    def scatter(self, states: Tensor) -> Tensor:
        """The inverse: `states` [B, M, d] put back into [B, T, d], which is zero at all other positions."""
        rows, _, width = states.shape
        places, found = self.flat, states.flatten(0, 1)
        if not self.valid.all():
            kept = self.valid.flatten().nonzero().squeeze(1)
            places, found = places.index_select(0, kept), found.index_select(0, kept)
        # Not a view of something flat: FSDP2 hangs its backward pass on the tensor that a block returns.
        at = (places // self.length, places % self.length)
        return found.new_zeros(rows, self.length, width).index_put(at, found)
