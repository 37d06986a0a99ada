"""The optimizer's step during the backward pass, so that the gradients of all parameters never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from frostline.core.errors import ConfigError


@contextmanager
def step_in_backward(optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """Inside this context, step each parameter as soon as the backward pass has its gradient, and free the gradient.

    Gives a list that collects the norms of the gradients. The optimizer's own `step` runs for one parameter at a time,
    so weights and state are bit for bit those of one step after the backward pass.
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
    """Raises `ConfigError` when `args` need all gradients at once, or those of several passes."""
    refused = {
        "clipping needs the norm of all gradients: use max_grad_norm=0": args.max_grad_norm > 0,
        "accumulation adds up the gradients of several passes: use gradient_accumulation_steps=1": (
            args.gradient_accumulation_steps > 1
        ),
        "fp16 checks all gradients before a step: use bf16=true instead": args.fp16,
        "several processes average their gradients after the pass: use one process": args.world_size > 1,
    }
    for reason, holds in refused.items():
        if holds:
            raise ConfigError(f"optimizer_in_backward frees each gradient during the backward pass, but {reason}")
