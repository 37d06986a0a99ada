"""The optimizer's step in the backward pass: gradients never exist all at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from frostline.core.errors import UserError


@contextmanager
def step_in_backward(optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """While open, step each parameter as soon as backward has its gradient, and free that gradient.

    Yields the list that collects the norms of the gradients. It is the optimizer's own `step`, over one
    parameter at a time, so that weights and state are those of one step after the backward pass, bit for bit.
    """
    norms: list[Tensor] = []

    def step(group: dict[str, Any], parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(torch.linalg.vector_norm(parameter.grad))
        groups, members = optimizer.param_groups, group["params"]
        optimizer.param_groups, group["params"] = [group], [parameter]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups, group["params"] = groups, members
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(partial(step, group))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


def check_in_backward(args: TrainingArguments) -> None:
    """Raise `UserError` where `args` want what needs all gradients at once, or those of several passes."""
    refused = {
        "clipping takes the norm of all gradients: set max_grad_norm: 0": args.max_grad_norm > 0,
        "accumulation adds up those of several passes: take none": args.gradient_accumulation_steps > 1,
        "float16 looks at all of them before a step: take bfloat16": args.fp16,
        "several processes average theirs after the pass: take one process": args.world_size > 1,
    }
    for reason, holds in refused.items():
        if holds:
            raise UserError(f"optimizer_in_backward frees each gradient in the backward pass, but {reason}")
