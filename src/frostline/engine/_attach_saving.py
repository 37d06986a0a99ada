"""`save_model` of an attached trainer: an ordinary model where the plan allows one, else a delta."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from frostline.anatomy import text_model
from frostline.checkpoints import save_delta
from frostline.core.errors import PlanError
from frostline.surgery import check_plain, one_dtype, to_plain


def save_trained(trainer: Any) -> str | None:
    """Let `trainer.save_model` write what other programs load.

    Checkpoints stay as they are: training is resumed from them with the adapters apart.

    Args:
        trainer: whose model has adapters of a plan, or computes something else than an ordinary model.

    Returns a notice where a delta is written instead; None where an ordinary model is.
    """
    try:
        check_plain(text_model(trainer.model))
    except PlanError as error:
        trainer.save_model = _delta(trainer, trainer.save_model)
        return f"save_model writes a delta, which frostline.load reads: {error}"
    trainer.save_model = _merged(trainer, trainer.save_model)
    return None


def _merged(trainer: Any, own: Any) -> Any:
    @functools.wraps(own)
    def save_model(output_dir: str | None = None, _internal_call: bool = False) -> Any:
        if _internal_call:  # a checkpoint
            return own(output_dir, _internal_call)
        model = trainer.model
        copied = copy.deepcopy(model)
        to_plain(text_model(copied))
        one_dtype(copied)
        trainer.model = copied
        try:
            return own(output_dir, _internal_call)
        finally:
            trainer.model = model

    return save_model


def _delta(trainer: Any, own: Any) -> Any:
    @functools.wraps(own)
    def save_model(output_dir: str | None = None, _internal_call: bool = False) -> Any:
        if _internal_call:
            return own(output_dir, _internal_call)
        if trainer.args.should_save:
            folder = Path(output_dir or trainer.args.output_dir)
            save_delta(text_model(trainer.model), folder)
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(folder)
        return None

    return save_model
