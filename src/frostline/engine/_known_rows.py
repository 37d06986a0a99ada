"""The rows of a trainer whose model is called with them as they are: they pass the frozen bottom before the first step.

Sorted by length they need less padding than in the first epoch, and every epoch saves.
"""

from __future__ import annotations

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


def _each(rows: Any) -> Iterator[Any]:
    return (rows[index] for index in range(len(rows)))


def _hold_tokens(row: Any, again: Any) -> bool:
    """Whether a row holds tokens, and is the same when it is read again."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        return False
    return list(row["input_ids"]) == list(again["input_ids"])
