"""A few tokens on which any text model runs, to see how it works."""

from __future__ import annotations

from typing import Any

import torch

from frostline.anatomy import Anatomy
from frostline.hooks import device_of

NO_ROUTER_LOSS = {"output_router_logits": False}


def three_tokens(model: Any, anatomy: Anatomy) -> dict[str, Any]:
    """The arguments of a pass of one row of three tokens; in an encoder-decoder, for both of its stacks."""
    ids = torch.ones(1, 3, dtype=torch.long, device=device_of(model))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if anatomy.encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if getattr(model.config, "output_router_logits", False):
        inputs |= NO_ROUTER_LOSS
    return inputs


def cannot_run(model: Any) -> bool:
    """Whether a part of `model` is on the meta device."""
    return any(parameter.is_meta for parameter in model.parameters())
