"""What adapters add to a model's loss while it trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from frostline.core.errors import FrostlineError
from frostline.core.labels import IGNORED


def arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward pass, by name."""
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | dict(kwargs)


def add_to_loss(extra: Tensor, model: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
    """Add `extra` to `output.loss`, in place. Without a loss, do nothing.

    With `num_items_in_batch`, the model divides its loss by the labels of several batches. `extra` is then multiplied
    by this batch's share of those labels.

    Args:
        extra: the number to add.
        model: the model that ran.
        inputs: the arguments of the pass, by name.
        output: what the model returned.

    Raises `FrostlineError` when the model returned a plain tuple, whose loss cannot be changed.
    """
    if isinstance(output, tuple):
        if inputs.get("labels") is not None:
            raise FrostlineError(
                "the adapter adds to the loss, and a tuple's loss cannot be changed: use return_dict=True"
            )
        return
    if getattr(output, "loss", None) is not None and extra.requires_grad:
        output.loss = output.loss + (_share_of_step(model, inputs) * extra).to(output.loss)


def _share_of_step(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """This batch's share of the step's labels, counted as the model's own loss counts them."""
    items, labels = inputs.get("num_items_in_batch"), inputs.get("shift_labels")
    if items is None:
        return 1.0
    if labels is None:
        shifts = getattr(model, "loss_type", None) == "ForCausalLM"
        labels = inputs["labels"][..., 1:] if shifts else inputs["labels"]
    return labels.ne(IGNORED).sum() / items
