"""Batches of rows of about equal length, in an order that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from frostline.core.seeding import derive_seed


class GroupedByLength(LengthGroupedSampler):
    """transformers' `LengthGroupedSampler`, its order drawn from `seed` and the epoch alone.

    transformers draws from torch's global generator, whose state at the beginning of an epoch is lost to a run
    that is resumed in the middle of it. `group` is the number of rows that lie together: an optimizer step's.
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
