"""The rows of a trainer whose model is called with them as they are: they pass the frozen bottom before the first step.

Sorted by length they need less padding than in the first epoch, and every epoch saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from frostline.bottom import LoopSession
from frostline.core.errors import FrostlineError
from frostline.engine._progress import start_bar
from frostline.engine._shortcuts import console_of
from frostline.hooks import state_kept


def fill_with_known_rows(trainer: Any, session: LoopSession) -> None:
    """Let the rows of the training set pass the bottom, where they can be told; otherwise the first epoch does it.

    Args:
        trainer: a `transformers.Trainer`.
        session: of the model that it trains. The caller is in the autocast of the training.
    """
    args, rows, collator = trainer.args, trainer.train_dataset, trainer.data_collator
    if not session.active or args.world_size > 1 or isinstance(rows, Mapping) or not hasattr(rows, "__len__"):
        return
    with state_kept(rows, collator, device=args.device), start_bar(console_of(args)) as bar:
        if not len(rows) or not _hold_tokens(rows[0], rows[0]):
            return
        try:
            session.fill(_each(rows), trainer._get_collator_with_removed_columns(collator), bar.rows)
        except (FrostlineError, LookupError, TypeError, ValueError):
            return  # not what the model is called with, or no room for all of them


def passes_over_rows(trainer: Any, models: int) -> float:
    """How often a row goes through the bottom in a training; inf where that is not known.

    Args:
        trainer: a `transformers.Trainer`.
        models: how many models with the same bottom it calls.
    """
    args, rows = trainer.args, trainer.train_dataset
    if getattr(trainer, "precompute_ref_logps", False):
        models = 1
    if args.max_steps <= 0:
        return float(models * args.num_train_epochs)
    rows = rows.values() if isinstance(rows, Mapping) else [rows]  # sentence-transformers: one for each loss
    count = sum(len(own) for own in rows) if all(hasattr(own, "__len__") for own in rows) else 0
    if not count:
        return math.inf
    each = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return float(models * args.max_steps * each / count)


def _each(rows: Any) -> Iterator[Any]:
    return (rows[index] for index in range(len(rows)))


def _hold_tokens(row: Any, again: Any) -> bool:
    """Whether a row holds tokens, and is the same when it is read again."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        return False
    return list(row["input_ids"]) == list(again["input_ids"])
