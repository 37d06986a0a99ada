"""Give a tied head a tensor of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from frostline.anatomy._model import Anatomy, Linear, Part, Tensor
from frostline.core.errors import PlanError


def untied(anatomy: Anatomy) -> Anatomy:
    """The anatomy of the same model after `untie`: the head has its own tensor [vocabulary, hidden], as its first one.

    A bias [vocabulary] that the head shares with the module around it (BERT) is copied too, because transformers ties
    both together. Raises `PlanError` when the head is not tied.
    """
    if not anatomy.tied:
        raise PlanError(f"untie: true: the head of {anatomy.model_class} is not tied to the embedding: leave untie out")
    shared = {tensor.name for tensor in anatomy.embeddings}
    linears = tuple(
        replace(linear, weight=f"{linear.name}.weight") if linear.weight in shared else linear
        for linear in anatomy.head_linears
    )
    copies = [
        copy
        for linear, before in zip(linears, anatomy.head_linears, strict=True)
        if linear.weight != before.weight
        for copy in _copies(linear, anatomy)
    ]
    return replace(anatomy, tied=False, head=(*copies, *anatomy.head), head_linears=linears)


def untie(model: Any) -> None:
    """Give the head of `model` a copy of the embedding's tensor, in place. The config then says that it is untied."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(head.bias.detach().clone())
    model.config.tie_word_embeddings = False
    text_config = model.config.get_text_config()
    text_config.tie_word_embeddings = False
    # save_pretrained and tie_weights read this besides the config.
    model.all_tied_weights_keys = {}


def _copies(linear: Linear, anatomy: Anatomy) -> Iterator[Tensor]:
    yield Tensor(linear.weight, (linear.out_features, linear.in_features), Part.HEAD, None, None, False)
    own = {f"{other.name}.bias" for other in anatomy.head_linears}
    biases = {tensor.name for tensor in anatomy.head if tensor.is_bias and tensor.shape == (linear.out_features,)}
    if biases - own:
        yield Tensor(f"{linear.name}.bias", (linear.out_features,), Part.HEAD, None, None, True)
