"""How many rows of an evaluation pass the model together.

The logits of a language model are large: a vocabulary of 100,000 for 32 rows of 128 tokens makes 1.6 GB, and the loss
needs three tensors of that size. So a batch has as many rows as fit in `LOGIT_BYTES`. This depends on the rows and on
the vocabulary alone, so that all runs on a task are evaluated in the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from frostline.rows import TaskKind
from frostline.tasks._encode import Encoded
from frostline.tasks._predict import HEADS
from frostline.tasks._tokenize import model_kind

MOST_ROWS = 32
LOGIT_BYTES = 256 * 2**20
"""The most that the loss of a batch takes: logits, a copy in float32, log-probabilities."""
BYTES_A_LOGIT = 12


def vocabulary(task: TaskKind, config: Any) -> int | None:
    """The width of the logits where a language model's own head does a task; None for other heads."""
    written = task not in HEADS or (task is TaskKind.CHOICE and model_kind(config) != "encoder")
    return int(config.get_text_config(decoder=True).vocab_size) if written else None


def eval_batch_size(task: TaskKind, config: Any, encoded: Encoded) -> int:
    """How many of any rows of `encoded` fit in a batch: at least one, at most `MOST_ROWS`.

    Args:
        task: the kind of the task.
        config: of the model.
        encoded: the rows of one split.
    """
    width = vocabulary(task, config)
    return MOST_ROWS if width is None else rows_that_fit(max(encoded.label_lengths, default=0), width)


def batches(encoded: Encoded, size: int | None, width: int | None) -> Iterator[Sequence[int]]:
    """The places of the rows of each batch. Rows of similar length share a batch, which needs less padding.

    Args:
        encoded: the rows.
        size: how many rows a batch has; None: as many as fit, at most `MOST_ROWS`.
        width: of the logits of a language model, which have to fit; None for other heads.
    """
    lengths = encoded.lengths
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    positions = encoded.label_lengths if size is None and width else [0] * len(order)
    batch: list[int] = []
    longest = 0
    for place in order:
        longest = max(longest, positions[place])
        if batch and len(batch) >= (size or rows_that_fit(longest, width or 1)):
            yield batch
            batch, longest = [], positions[place]
        batch.append(place)
    if batch:
        yield batch


def rows_that_fit(positions: int, width: int) -> int:
    """How many rows with logits of this width at so many positions fit in a batch."""
    return max(1, min(MOST_ROWS, LOGIT_BYTES // max(1, BYTES_A_LOGIT * positions * width)))
