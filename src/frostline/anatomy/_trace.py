"""Find which modules run before the blocks, by running the model up to its first block.

A norm can be after the embeddings or after the blocks. Names and the order of modules do not tell which in every model,
but the model's own forward does. Weights are not read: each tensor is replaced by a single zero on the CPU, expanded to
the tensor's shape. So this needs almost no memory and time, and works for weights on any device, the meta device
included.
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

    Weights, hooks, training mode and random state stay as they were. Raises `UnsupportedModel` when the stack does not
    reach its first block from token ids alone.
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
        f"{type(stack.module).__name__} does not run from token ids to its first block ({reason}): use a text model"
    )


def _inputs(stack: Stack) -> dict[str, Tensor]:
    ids = torch.zeros(1, 2, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if stack.after_encoder:
        inputs["encoder_hidden_states"] = torch.zeros(1, 2, stack.config.hidden_size)
    return inputs
