"""A run whose training is split between a server and clients (SplitLoRA)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from frostline.core.errors import ConfigError
from frostline.core.sizes import size_text
from frostline.engine import Trainer
from frostline.plan import Split
from frostline.run._config import RunConfig
from frostline.split import SplitReport, SplitTrainer

_ONLY = {
    "batching": "random",
    "gradient_accumulation": 1,
    "optimizer_in_backward": False,
    "frozen_bits": None,
    "checkpointing": False,
    "eval_every": None,
    "save_every": None,
}


def trainer_for(split: Split | None, config: RunConfig) -> Callable[..., Trainer]:
    """What makes the trainer of a run whose strategy splits the training so, or not at all (None).

    Raises `UserError` for a config that asks of a split training what it cannot do.
    """
    if split is None:
        return Trainer
    for key, only in _ONLY.items():
        if getattr(config, key) != only:
            raise ConfigError(f"{key}: strategy '{config.strategy}' trains in parts, which goes without: leave it out")
    if config.optimizer == "flora":
        raise ConfigError(f"optimizer: strategy '{config.strategy}' goes with adamw or sgd, not with flora")
    return partial(SplitTrainer, split=split)


def split_report(trainer: Trainer) -> SplitReport | None:
    """What a split training came to; None for one that was not split."""
    return trainer.report if isinstance(trainer, SplitTrainer) else None


def split_notice(report: SplitReport) -> str:
    """Who held what, in a line."""
    return (
        f"split at block {report.cut} over {report.clients} clients: states of their rows and the rows' labels went to "
        f"the server, the rows did not; {size_text(sum(report.bytes.values()))} sent in all"
    )
