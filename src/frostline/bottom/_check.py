"""The proof before the first step: training from the activation cache is the same training.

Three loss-and-gradient computations of a few check rows are compared: with the frozen bottom, with its own states put
back in the place of the bottom, and with what the cache holds. The first difference shows whether anything but hidden
states crosses the boundary, the second whether stored states are the model's own. That a row's states do not hang on
the padding beside it is compared by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from frostline.bottom._caching_pass import pass_rows, same_states
from frostline.bottom._contents import Contents
from frostline.bottom._cut import crossing
from frostline.bottom._feed import rows_in_batch, stored_states
from frostline.bottom._standins import StandIns
from frostline.hooks import OTHER_BATCH, STORED_IN_FEWER_BITS, Tolerance, compare_training, observe

CROSSING = Tolerance(1e-4, 1e-4, 1e-2, "the same products on the same states")


def padding_matters(contents: Contents, places: Mapping[str, str], rows: Mapping[str, Any]) -> str | None:
    """Whether an example has other states beside padding than alone, said in one line; None when it has the same.

    Args:
        contents: how rows pass.
        places: the blocks (stream -> block) whose states are compared.
        rows: key -> features: the longest, the shortest and maybe others.
    """
    model, passage = contents.training.model, contents.passage
    longest, shortest = (*rows, *rows)[:2]
    alone = pass_rows(model, places, passage, {shortest: rows[shortest]})[shortest]
    beside = pass_rows(model, places, passage, {key: rows[key] for key in (longest, shortest)})[shortest]
    if same_states(alone, beside):
        return None
    return "what the blocks below the boundary make of an example changes with the padding beside it"


def mismatch(contents: Contents, rows: Mapping[str, Any]) -> str | None:
    """What differs, in one line, when the model computes check rows from the cache; None when nothing does.

    Weights, gradients, generators and the training mode are left as they were.

    Args:
        contents: what is cached, of which training.
        rows: key -> features: the longest, the shortest and maybe others; no more than a training batch of them are
            computed at once.
    """
    training, passage, cut = contents.training, contents.passage, contents.cut
    model = training.model
    keys = list(rows)[: training.batch_size]
    features = [rows[key] for key in keys]
    batch = passage.batch(features)
    another = list(rows)[:2][-1]
    own_states: dict[str, Tensor] = {}

    def loss() -> Tensor:
        with passage.context():
            return training.loss(model, dict(batch))

    def with_bottom() -> Tensor:
        with observe(model, crossing(cut)) as states:
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
        pass_rows(model, crossing(cut), passage, {another: rows[another]})  # as in training, others passed in between
        return fed(own_states)

    found = compare_training(model, with_bottom, replayed, CROSSING, training=True)
    if found is not None:
        return f"something beside the hidden states crosses the boundary: without the bottom {found}"
    stored = stored_states(contents.cache, rows_in_batch(keys, batch, features, passage.names))
    in_float32 = all(dtype == torch.float32 for dtype in passage.dtypes.values())
    bound = OTHER_BATCH if in_float32 else STORED_IN_FEWER_BITS
    found = compare_training(model, loss, lambda: fed(stored), bound, training=True)
    return None if found is None else f"the stored states are not the model's own: with them {found}"
