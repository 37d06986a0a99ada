"""More embeddings than the checkpoint has, for a tokenizer with more tokens than the model."""

from __future__ import annotations

import copy
from typing import Any

_ROWS = "_rows_of_the_base"


def resize_embeddings(model: Any, rows: int, *, drawn: bool = True) -> None:
    """Give the model `rows` embeddings, where it has fewer, in place; also its head where that writes tokens.

    The new rows are drawn as transformers does it: around the mean of the others. Training has to follow, and its delta
    then holds them.

    Args:
        model: a transformers model.
        rows: how many embeddings it needs.
        drawn: false leaves the new rows as they come, where a delta replaces them.
    """
    before = model.get_input_embeddings().weight.shape[0]
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=drawn)
        setattr(model, _ROWS, before)


def rows_of_the_base(model: Any) -> int | None:
    """How many embeddings the model had before `resize_embeddings`; None where it was not resized."""
    return getattr(model, _ROWS, None)


def resized_tensors(model: Any) -> set[str]:
    """The names of the parameters with a row for each token: embeddings, and a head that writes tokens."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    members = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def with_vocabulary(config: Any, rows: int) -> Any:
    """A copy of the config for a model with `rows` embeddings, and without a pad token that is none of them."""
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        if (getattr(part, "pad_token_id", None) or 0) >= rows:
            part.pad_token_id = None
    config.get_text_config().vocab_size = rows
    return config
