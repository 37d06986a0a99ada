"""Give a head that shares the embedding's tensor one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from frostline.anatomy.model import Anatomy, Part, Tensor
from frostline.core.errors import UserError


def untied(anatomy: Anatomy) -> Anatomy:
    """The anatomy of the same model with a head tensor of its own, [vocabulary, hidden].

    Raises `UserError` when the head is not tied.
    """
    if not anatomy.tied:
        raise UserError(f"untie: true, but the head of {anatomy.model_class} is not tied: leave it out")
    shared = {tensor.name for tensor in anatomy.embeddings}
    linears = tuple(
        replace(linear, weight=f"{linear.name}.weight") if linear.weight in shared else linear
        for linear in anatomy.head_linears
    )
    copies = tuple(
        Tensor(linear.weight, (linear.out_features, linear.in_features), Part.HEAD, None, None, False)
        for linear, before in zip(linears, anatomy.head_linears, strict=True)
        if linear.weight != before.weight
    )
    return replace(anatomy, tied=False, head=(*copies, *anatomy.head), head_linears=linears)


def untie(model: Any) -> None:
    """Copy the embedding's tensor into the head of `model`, in place; its config then says untied."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    text_config = model.config.get_text_config()
    text_config.tie_word_embeddings = False
    # What save_pretrained and tie_weights consult besides the config.
    model.all_tied_weights_keys = {}
