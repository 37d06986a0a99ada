"""A run whose training is split between a server and clients (SplitLoRA)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from frostline.core.errors import ConfigError
from frostline.core.sizes import size_text
from frostline.engine import Trainer
from frostline.plan import Split
from frostline.run._config import RunConfig
from frostline.split import OPTIMIZERS, SplitReport, SplitTrainer

_ONLY = {
    "train_sampling_strategy": "random",
    "packing": False,
    "gradient_accumulation_steps": 1,
    "optimizer_in_backward": False,
    "keep_left_state": False,
    "frozen_bits": None,
    "activation_checkpointing": False,
    "eval_steps": None,
    "save_steps": None,
    "training": {},
}
"""The settings that a split training supports with one value only."""


def trainer_for(split: Split | None, config: RunConfig) -> Callable[..., Trainer]:
    """What makes the trainer of a run; `split` is how its strategy splits the training, or None.

    Raises `ConfigError` for a setting that a split training does not support.
    """
    if split is None:
        return Trainer
    for key, only in _ONLY.items():
        if getattr(config, key) != only:
            raise ConfigError(
                f"{key}: strategy '{config.strategy}' splits the training between processes, which does not support "
                f"{key}={getattr(config, key)}: leave it out"
            )
    if config.optim not in OPTIMIZERS:
        raise ConfigError(
            f"optim: strategy '{config.strategy}' splits the training between processes, which does not support "
            f"{config.optim}: use one of {', '.join(OPTIMIZERS)}"
        )
    return partial(SplitTrainer, split=split)


def split_report(trainer: Trainer) -> SplitReport | None:
    """What a split training reports; None for one that was not split."""
    return trainer.report if isinstance(trainer, SplitTrainer) else None


def split_notice(report: SplitReport) -> str:
    """Who held what, as a line."""
    return (
        f"split at block {report.cut} over {report.clients} clients: hidden states and labels of their rows went to "
        f"the server, the rows themselves did not; {size_text(sum(report.bytes.values()))} were sent in all"
    )
