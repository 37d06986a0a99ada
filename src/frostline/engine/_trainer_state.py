"""Check the file in which transformers keeps how far a training is, before a training goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerState

from frostline.core.errors import CheckpointError
from frostline.core.files import read_json

TRAINER_STATE_FILE = "trainer_state.json"
_KINDS: dict[str, tuple[type, ...]] = {
    "train_batch_size": (int,),
    "best_metric": (int, float),
    "best_global_step": (int,),
    "best_model_checkpoint": (str,),
    "trial_name": (str,),
    "trial_params": (dict,),
}
"""The types of the values that may be null."""


def check_trainer_state(folder: Path) -> None:
    """Raise `CheckpointError` where the state in the checkpoint `folder` has a value that transformers cannot use."""
    path = folder / TRAINER_STATE_FILE
    saved, known = read_json(path, "state of the trainer"), vars(TrainerState())
    values = saved if isinstance(saved, dict) else {}
    wrong = [key for key, value in values.items() if not _fits(value, known.get(key, ...), _KINDS.get(key, ()))]
    wrong += [key for key in ("global_step", "max_steps") if key not in values]
    wrong += [] if all(isinstance(entry, dict) for entry in values.get("log_history", ())) else ["log_history"]
    if wrong:
        raise CheckpointError(f"{path}: its state of the trainer is damaged ({wrong[0]}): use another checkpoint")


def _fits(value: Any, default: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of the type of its default, or of one of the `kinds` where the default is None."""
    if default is ...:
        return False
    if default is None:
        return value is None or isinstance(value, kinds)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and 0 <= value <= 2**63
    return isinstance(value, type(default))
