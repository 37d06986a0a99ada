"""Batches of rows of similar length, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from frostline.core.seeding import derive_seed


class GroupedByLength(LengthGroupedSampler):
    """transformers' `LengthGroupedSampler`, but its order depends on `seed` and the epoch alone.

    transformers draws the order from torch's global generator. A run that is resumed in the middle of an epoch does not
    know the state of that generator at the start of the epoch, so it could not repeat the order.

    Args:
        group: the number of rows of similar length that are drawn together: those of an optimizer step.
        lengths: of all rows.
        seed: of the order.
    """

    def __init__(self, group: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(group, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch by the data loader."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(derive_seed(self._seed, "batches", self._epoch))
        yield from super().__iter__()
