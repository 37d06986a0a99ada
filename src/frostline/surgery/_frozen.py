"""What is frozen stays out of the way: in eval mode, and with no gradient asked of the embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from frostline.anatomy import Anatomy
from frostline.plan import Plan


def keep_frozen_out(model: nn.Module, plan: Plan, anatomy: Anatomy) -> RemovableHandle:
    """Before every forward pass of `model`, put frozen blocks in eval mode and drop the input-gradient hook.

    Two train-mode passes through a frozen bottom would differ by their dropout, so that nothing below the
    boundary could be computed once; and dropout in a block that cannot answer it is only noise. Blocks in
    eval mode are not checkpointed either. transformers and PEFT make the embeddings' output require
    gradients when activations are checkpointed; backward would then cross every frozen block, and only
    re-entrant checkpointing needs it. A hook rather than one call, because training loops call
    `model.train()` again, and may switch checkpointing on later.
    """
    paths = {module: path for path, module in model.named_modules()}
    frozen = [paths[module] for module in _frozen_modules(model, plan, anatomy)]

    def before_forward(module: Any, _inputs: Any) -> None:
        if module.training:
            for path in frozen:  # by path: a copy of the model has parts of its own
                module.get_submodule(path).eval()
        if plan.boundary > 0 and getattr(module, "_require_grads_hooks", None):
            module.disable_input_require_grads()

    return model.register_forward_pre_hook(before_forward)


def _frozen_modules(model: nn.Module, plan: Plan, anatomy: Anatomy) -> list[nn.Module]:
    frozen = [
        model.get_submodule(block.name)
        for mode, block in zip(plan.blocks, anatomy.blocks, strict=True)
        if mode.mode == "frozen"
    ]
    if plan.embeddings.mode == "frozen":
        frozen += _embedding_modules(model, anatomy)
    return frozen


def _embedding_modules(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The leaves of the trunk outside blocks, final norm and head: embeddings, their norms and dropouts."""
    after = {tensor.name.rpartition(".")[0] for tensor in (*anatomy.final_norm, *anatomy.head)}
    inside = tuple(block.name + "." for block in anatomy.blocks)
    trunk = getattr(model, "base_model", model)
    prefix = "" if trunk is model else f"{getattr(model, 'base_model_prefix', '')}."
    return [
        module
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and not name.startswith(inside)
        and next(module.children(), None) is None
        and not any(name == other or other.startswith(name + ".") for other in after)
    ]
