"""With which states of the random generators a training goes on, also in another number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.core.errors import CheckpointError
from frostline.hooks import Generators, drops_by, state_kept
from frostline.surgery import Applied


def generators_file(trainer: Any, applied: Applied, folder: Path) -> Path:
    """The file in a checkpoint with the generator states that a process of `trainer` goes on with.

    It is the process's own. In another number of processes the states mean nothing, and those of the first process
    serve, where training draws no random numbers that change it.

    Args:
        trainer: which resumes.
        applied: what its plan did to the model.
        folder: the checkpoint.

    Raises `CheckpointError` where training would go on with other random numbers.
    """
    count = trainer.args.world_size
    saved = len(list(folder.glob("rng_*.json")))
    own = folder / f"rng_{trainer.args.process_index}.json"
    if saved in (0, count):
        if own.is_file():
            return own
        raise CheckpointError(
            f"{folder}: it has no {own.name}, so training cannot go on as if it had never stopped: use a complete "
            "checkpoint, or begin a new training with frostline.load"
        )
    if (draws := _draws(trainer, applied)) is not None:
        raise CheckpointError(
            f"{folder}: it was saved by {saved} processes, and these are {count}, so training would go on with other "
            f"random numbers ({draws}): use {saved} processes"
        )
    return folder / "rng_0.json"


def _draws(trainer: Any, applied: Applied) -> str | None:
    """What draws random numbers that change the training, in one clause; None where nothing is known to."""
    if trainer.args.neftune_noise_alpha is not None:
        return "NEFTune draws noise"
    plan = applied.plan
    if plan.forward.drops:
        return "blocks or adapters are left out at random"
    still = [] if plan.frozen_dropout else [b for b in applied.anatomy.blocks if plan.blocks[b.index].mode == "frozen"]
    names = tuple(f"{block.name}." for block in still)
    for name, module in trainer.text_model.named_modules():
        if not f"{name}.".startswith(names or ("\0",)) and (attribute := drops_by(module)) is not None:
            return f"dropout acts ({name}.{attribute})"
    rows, device = trainer.train_dataset, trainer.args.device
    with state_kept(rows, trainer.data_collator, device=device):
        before = Generators.now(device)
        trainer._collate()([rows[index] for index in range(min(2, len(rows)))])
        same = Generators.now(device).equals(before)
    return None if same else "the collator draws random numbers"
