"""A model without weights, for plans and counts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from frostline.core.errors import UnsupportedModel, first_line


def skeleton(config: PreTrainedConfig, model_class: Any) -> PreTrainedModel:
    """The model of `config`, with every tensor on the meta device, where it needs no memory.

    `model_class` is a class of transformers: an auto class (`AutoModelForCausalLM`, ...) or a model's own. Code that
    comes with a checkpoint is not run. Raises `UnsupportedModel` when the class cannot build a model from the config.
    """
    try:
        with torch.device("meta"):
            if hasattr(model_class, "from_config"):
                return model_class.from_config(config, trust_remote_code=False)
            return model_class._from_config(copy.deepcopy(config))
    except Exception as error:  # values of a config can make any error in a model's own code
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = kind + first_line(error)
        raise UnsupportedModel(
            f"{model_class.__name__} cannot build a model of type '{config.model_type}': {reason}"
        ) from error
