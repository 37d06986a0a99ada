"""Before the first step: one batch's loss and gradients, with the activation cache and without.

Compared twice. First the model's own boundary states are given back to the model with its bottom replaced: the
same operations on the same numbers, so any difference is something else that crosses the boundary (a router loss,
a position bias). Then the stored states take their place, which differ by their rounding alone. In between another
row passes the bottom, so that a block above cannot read what one below left of the batch.

Before the first row passes at all: what an example's states are must not hang on the padding beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from frostline.bottom import (
    ActivationCache,
    Cut,
    Passage,
    StandIns,
    cached_rows,
    crossing,
    pass_rows,
    same_states,
    stored_states,
)
from frostline.core.errors import first_line
from frostline.hooks import observe, undisturbed

EXACT = 1e-4
LOSS_BOUND = {torch.float32: 1e-4}
ROUNDED_LOSS = 2e-2
GRADIENT_BOUND = {torch.float32: 1e-3}
ROUNDED_GRADIENT = 0.1


def padding_matters(model: Any, places: Mapping[str, str], passage: Passage, rows: Mapping[str, Any]) -> str | None:
    """Whether an example has other states beside padding than alone, said in one line; None when it has the same.

    `rows` (key -> features) are the longest, the shortest and maybe others, `places` the blocks (stream -> block)
    whose states are compared. The training mode is left as it was.
    """
    longest, shortest = (*rows, *rows)[:2]
    alone = pass_rows(model, places, passage, {shortest: rows[shortest]})[shortest]
    beside = pass_rows(model, places, passage, {key: rows[key] for key in (longest, shortest)})[shortest]
    if same_states(alone, beside):
        return None
    return "what the blocks below the boundary make of an example changes with the padding beside it"


def mismatch(trainer: Any, cut: Cut, passage: Passage, store: ActivationCache, rows: Mapping[str, Any]) -> str | None:
    """What differs, in one line, when the trainer's model computes `rows` from the store; None when nothing does.

    `rows` (key -> features) are the longest, the shortest and maybe others; no more than a training batch of them
    are computed at once.
    Weights, gradients, generators and the training mode are left as they were.
    """
    model = trainer.model
    keys = list(rows)[: trainer.args.train_batch_size]
    features = [rows[key] for key in keys]
    batch = passage.batch(features)
    with observe(model, crossing(cut)) as own_states:
        own = _loss_and_gradients(trainer, passage, batch)
    another = list(rows)[:2][-1]
    pass_rows(model, crossing(cut), passage, {another: rows[another]})
    stored = stored_states(store, cached_rows(keys, batch, features, passage.names))
    standins = StandIns(model, cut)
    try:
        standins.feed(own_states)
        replayed = _loss_and_gradients(trainer, passage, batch)
        if (found := _difference(own, replayed, EXACT, EXACT)) is not None:
            return f"something beside the hidden states crosses the boundary: {found}"
        standins.feed({name: value.to(trainer.args.device) for name, value in stored.items()})
        kept_in = next(iter(passage.dtypes.values()))
        bounds = (LOSS_BOUND.get(kept_in, ROUNDED_LOSS), GRADIENT_BOUND.get(kept_in, ROUNDED_GRADIENT))
        found = _difference(own, _loss_and_gradients(trainer, passage, batch), *bounds)
        return None if found is None else f"the stored states are not the model's own: {found}"
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"the model does not run without the blocks below its boundary ({first_line(error)})"
    finally:
        standins.remove()


Step = tuple[float, list[Tensor | None]]


def _loss_and_gradients(trainer: Any, passage: Passage, batch: dict[str, Any]) -> Step:
    model = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with undisturbed(model, training=True), passage.context():
        torch.manual_seed(0)
        loss = trainer.compute_loss(model, dict(batch))
        return loss.item(), list(torch.autograd.grad(loss, trained, allow_unused=True))


def _difference(own: Step, other: Step, loss_bound: float, gradient_bound: float) -> str | None:
    if not abs(own[0] - other[0]) <= loss_bound * max(1.0, abs(own[0])):
        return f"the loss of the first rows is {own[0]:.6g} without the store and {other[0]:.6g} with it"
    apart, norm = 0.0, 0.0
    for mine, its in zip(own[1], other[1], strict=True):
        if mine is not None or its is not None:
            first = torch.zeros_like(its) if mine is None and its is not None else mine
            second = torch.zeros_like(mine) if its is None and mine is not None else its
            assert first is not None and second is not None
            apart += float((first - second).float().square().sum())
            norm += float(first.float().square().sum())
    relative = (apart / norm) ** 0.5 if norm else float(apart > 0)
    if not relative <= gradient_bound:
        return f"the gradients of the first rows differ by {100 * relative:.2g}%"
    return None
