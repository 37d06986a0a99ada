"""How many optimizer steps a training has."""

from __future__ import annotations

import math

from transformers import TrainingArguments


def steps_of(args: TrainingArguments, rows: int) -> int:
    """The optimizer steps of a training, as `transformers.Trainer` counts them.

    Args:
        args: of the training.
        rows: of the training set.
    """
    if args.max_steps > 0:
        return int(args.max_steps)
    together = int(args.train_batch_size * args.world_size)
    batches = rows // together if args.dataloader_drop_last else math.ceil(rows / together)
    an_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return int(max(1, math.ceil(args.num_train_epochs * an_epoch)))
