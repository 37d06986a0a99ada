"""Which modules run before the blocks: seen by running the model up to its first block.

No rule on names or on the order of registration tells a norm after the embeddings from a norm after the
blocks in every model, but the model's own forward does. Its weights are not read: every tensor is replaced by
one zero on the CPU, seen through strides of 0 at the tensor's shape. So this takes no memory and no time to
speak of, and works the same for weights on the meta device or on an accelerator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from frostline.anatomy._stacks import Stack
from frostline.core.errors import UnsupportedModel
from frostline.hooks import generators_kept, stoppable, zero_tensors


def modules_before_blocks(stack: Stack) -> set[nn.Module]:
    """The modules of `stack` whose forward starts before that of the first block.

    Leaves weights, hooks, training mode and random state as they were. Raises `UserError` when the stack does
    not reach a block from token ids alone.
    """
    blocks = set(stack.blocks)
    ran: set[nn.Module] = set()

    def note(module: nn.Module, _inputs: Any) -> None:
        if module in blocks:
            stop()
        ran.add(module)

    reason = "no block ran"
    with stoppable() as stop:
        hooks = [module.register_forward_pre_hook(note) for module in stack.module.modules()]
        try:
            with torch.no_grad(), generators_kept():
                functional_call(stack.module, zero_tensors(stack.module), (), _inputs(stack))
        except Exception as error:
            if stop.reached:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            for hook in hooks:
                hook.remove()
    if stop.reached:
        return ran
    raise UnsupportedModel(
        f"{type(stack.module).__name__} does not run from token ids to its first block ({reason}): give a text model"
    )


def _inputs(stack: Stack) -> dict[str, Tensor]:
    ids = torch.zeros(1, 2, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if stack.after_encoder:
        inputs["encoder_hidden_states"] = torch.zeros(1, 2, stack.config.hidden_size)
    return inputs
