"""A model without weights, to plan and to count with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from frostline.core.errors import UserError


def skeleton(config: PreTrainedConfig, auto_class: Any) -> PreTrainedModel:
    """The model of `config` with every tensor on the meta device, where it takes no memory.

    `auto_class` is one of transformers' (`AutoModelForCausalLM`, ...). Code that comes with a checkpoint is
    not run. Raises `UserError` when the class cannot build a model from this config.
    """
    try:
        with torch.device("meta"):
            return auto_class.from_config(config, trust_remote_code=False)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{auto_class.__name__} cannot build a model of type '{config.model_type}': {reason}"
        ) from error
