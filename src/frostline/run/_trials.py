"""What trials are told, and how what they found is written down and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.core.cache import default_root
from frostline.core.errors import CheckpointError, UserError
from frostline.core.files import read_json
from frostline.strategies import Option

TRIALS_FILE = "trials.json"
WARM_UP = 10
DECAY = 0.2
"""The share of a run's steps in which the learning rate falls."""
FAR = 10**6
JUDGED = 5
"""How often the run that comes of the trials is judged while its rate is held."""
CHECKS = 0.05
"""The share of a run that judging and checks take, about."""
MOST_RATES = 4
"""The most learning rates that are tried."""
SPARE = 0.02
"""The share of the budget that is left for what cannot be foreseen."""
FIRST_LOOK = 10.0
"""A trial of more full steps than this is judged twice, so that its loss can be extrapolated."""


@dataclass(frozen=True)
class Attempt:
    """A training to try: an option at a learning rate. The rows of its `first_steps` pass the frozen bottom."""

    option: Option
    learning_rate: float
    folder: Path
    first_steps: int


@dataclass(frozen=True)
class Terms:
    """What a tournament knows of the run.

    Attributes:
        share: the budget as a share of full fine-tuning's time; None where it is in seconds.
        seconds: the budget in seconds; None where it is a share.
        lost: the share of the budget that may be lost in trials.
        rate: the learning rate that the user gave; None: it is tried.
        rows: training rows.
        step_rows: rows of an optimizer step.
        step_tokens: tokens of an optimizer step.
        epochs: the passes over the rows of full fine-tuning.
    """

    share: float | None
    seconds: float | None
    lost: float
    rate: float | None
    rows: int
    step_rows: int
    step_tokens: float
    epochs: float

    @property
    def full_steps(self) -> int:
        return round(self.epochs * -(-self.rows // self.step_rows))


def read_trials(path: Path) -> dict[str, Any]:
    """The trials in a file. Raises `CheckpointError` where it does not hold any."""
    found = read_json(path, "trials")
    if not isinstance(found, dict) or not isinstance(found.get("trials"), dict):
        raise CheckpointError(f"{path}: it does not hold trials, so it is damaged: remove it, and start the run anew")
    return found


def read_kept(path: Path) -> dict[str, Any] | None:
    """Trials that were kept, or None where there are none, or they cannot be read."""
    try:
        found = read_trials(path)
    except (UserError, OSError):
        return None
    return found if isinstance(found.get("chosen"), dict) else None


def kept_at(identity: Mapping[str, Any]) -> Path:
    """Where the result of trials is kept."""
    canonical = json.dumps(identity, sort_keys=True, default=str)
    return default_root() / "trials" / f"{hashlib.sha256(canonical.encode()).hexdigest()[:32]}.json"
