"""What adapters add to a model's loss while it trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from frostline.core.errors import FrostlineError


def arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a pass was called with, by name."""
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | dict(kwargs)


def add_to_loss(extra: Tensor, model: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
    """Add a number to the `loss` of what `model` returned for `inputs` (by name), in place; nothing without a loss.

    Where the model's loss is divided by `num_items_in_batch`, which counts the labels of several batches, the number
    counts as its batch does. Raises `FrostlineError` when the model returns a bare tuple, which cannot take it.
    """
    if isinstance(output, tuple):
        if inputs.get("labels") is not None:
            raise FrostlineError("an adapter adds to the loss in the model's named output: leave out return_dict=False")
        return
    if getattr(output, "loss", None) is not None and extra.requires_grad:
        output.loss = output.loss + (_share_of_step(model, inputs) * extra).to(output.loss)


def _share_of_step(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """How much of the step's labels this batch has, as the model's own loss counts them."""
    items, labels = inputs.get("num_items_in_batch"), inputs.get("shift_labels")
    if items is None:
        return 1.0
    if labels is None:
        shifts = getattr(model, "loss_type", None) == "ForCausalLM"
        labels = inputs["labels"][..., 1:] if shifts else inputs["labels"]
    return labels.ne(-100).sum() / items
