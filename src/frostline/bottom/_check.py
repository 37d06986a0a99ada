"""The check before the first step: training from the activation cache is the same training.

The loss and the gradients of a few check rows are computed in three ways:

1. with the frozen bottom,
2. with the states that the bottom gave in 1, in place of the bottom,
3. with the states that the cache holds.

If 1 and 2 differ, something other than the hidden states crosses the boundary. If 1 and 3 differ, the states in the
cache are not those of this model. A separate check makes sure that the states of a row do not depend on its padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._caching_pass import Passage, pass_rows, same_states
from frostline.bottom._contents import Contents
from frostline.bottom._cut import last_blocks
from frostline.bottom._feed import rows_in_batch, stored_states
from frostline.bottom._standins import StandIns
from frostline.hooks import (
    OTHER_BATCH,
    STORED_IN_FEWER_BITS,
    Tolerance,
    compare_training,
    compute_step,
    observe,
    state_kept,
)

Without = Callable[[], AbstractContextManager[None]]
Holding = Callable[[Any, Any], AbstractContextManager[None]]
CROSSING = Tolerance(1e-4, 1e-4, 1e-2, "the same products of the same states")


def padding_difference(contents: Contents, blocks: Mapping[str, str], rows: Mapping[str, Any]) -> str | None:
    """Say in one line that the states of a row change when the row is padded; None when they do not.

    Args:
        contents: how rows go through the bottom.
        blocks: the blocks (stream -> block) whose states are compared.
        rows: key -> features. The first is the longest row, the second the shortest; there may be others.
    """
    model, passage = contents.training.model, contents.passage
    longest, shortest = (*rows, *rows)[:2]
    alone = pass_rows(model, blocks, passage, {shortest: rows[shortest]})[shortest]
    padded = pass_rows(model, blocks, passage, {key: rows[key] for key in (longest, shortest)})[shortest]
    if same_states(alone, padded):
        return None
    return "the states of a row at the boundary change with its padding"


def mismatch(contents: Contents, rows: Mapping[str, Any]) -> str | None:
    """Say in one line how training on check rows differs when it reads the cache; None when it does not.

    Weights, gradients, random generators and training flags are left as they were.

    Args:
        contents: what is cached, and for which training.
        rows: key -> features. The first is the longest row, the second the shortest; there may be others. At most
            one training batch of them is used.
    """
    training, passage, cut = contents.training, contents.passage, contents.cut
    model = training.model
    keys = list(rows)[: training.batch_size]
    features = [rows[key] for key in keys]
    batch = passage.batch(features)
    other_row = list(rows)[:2][-1]
    own_states: dict[str, Tensor] = {}

    def loss() -> Tensor:
        with passage.context():
            return training.loss(model, dict(batch))

    def with_bottom() -> Tensor:
        with observe(model, last_blocks(cut)) as states:
            found = loss()
        own_states.update(states)
        return found

    def fed(states: Mapping[str, Tensor]) -> Tensor:
        standins = StandIns(model, cut)
        try:
            standins.feed({name: value.to(training.device) for name, value in states.items()})
            return loss()
        finally:
            standins.remove()

    def replayed() -> Tensor:
        # In training, other rows run between two uses of a row. If the model keeps something of them, it shows here.
        pass_rows(model, last_blocks(cut), passage, {other_row: rows[other_row]})
        return fed(own_states)

    plain = compute_step(model, with_bottom, training=True)
    found = compare_training(model, plain, replayed, CROSSING, training=True)
    if found is not None:
        return f"something other than the hidden states crosses the boundary: without the bottom {found}"
    stored = stored_states(contents.cache, rows_in_batch(keys, batch, features, passage.names))
    found = compare_training(model, plain, lambda: fed(stored), _tolerance(passage), training=True)
    return (
        None
        if found is None
        else f"training from the cache differs, as with a loss that reads outputs at padding: with it {found}"
    )


def difference_in_use(contents: Contents, without: Without, holding: Holding) -> str | None:
    """Say in one line how training on check rows differs now that it reads the cache; None when it does not.

    Args:
        contents: what is cached, and for which training.
        without: a context in which the bottom runs.
        holding: a context in which passes get the states of given rows (rows, batch).
    """
    training, passage = contents.training, contents.passage
    rows = list(contents.check_rows().values())[: training.batch_size]
    with state_kept(training.collate):
        batch = passage.batch(rows)

    def loss(context: AbstractContextManager[None]) -> Tensor:
        with context, passage.context():
            return training.loss(training.model, dict(batch))

    found = compare_training(
        training.model,
        lambda: loss(without()),
        lambda: loss(holding(rows, batch)),
        _tolerance(passage),
        training=True,
    )
    return None if found is None else f"training with the cache and without it has grown apart: with it {found}"


def _tolerance(passage: Passage) -> Tolerance:
    in_float32 = all(dtype == torch.float32 for dtype in passage.dtypes.values())
    return OTHER_BATCH if in_float32 else STORED_IN_FEWER_BITS
