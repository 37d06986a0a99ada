"""Keep what is frozen in eval mode, and keep gradients out of the embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from frostline.anatomy import Anatomy
from frostline.hooks import checkpoints_reentrantly
from frostline.plan import Plan


def keep_frozen_out(model: nn.Module, plan: Plan, anatomy: Anatomy) -> list[RemovableHandle]:
    """Put frozen blocks and embeddings in eval mode before they run, and keep input gradients off.

    Eval mode: with dropout, two passes through a frozen bottom would differ, so it could not be computed once; and in a
    block that does not train, dropout is only noise. Blocks in eval mode are not checkpointed either. A plan with
    `frozen_dropout` leaves them in train mode.

    Input gradients: with activation checkpointing, transformers and PEFT make the output of the embeddings require
    gradients. The backward pass would then run through every frozen block. Only re-entrant checkpointing needs that:
    where it is on, they stay.

    These are hooks, not one call, because training loops call `model.train()` again and may switch checkpointing on
    later. Those of the frozen modules are on these modules, because some loops call the model's `forward` itself.
    """

    def without_input_gradients(module: Any, _inputs: Any) -> None:
        if not plan.boundary or not getattr(module, "_require_grads_hooks", None):
            return
        if not checkpoints_reentrantly(module):
            module.disable_input_require_grads()

    frozen = [] if plan.frozen_dropout else _frozen_modules(model, plan, anatomy)
    holders = [] if plan.frozen_dropout or plan.embeddings.mode != "frozen" else _holders(model, plan, anatomy)
    return [
        model.register_forward_pre_hook(without_input_gradients),
        *(module.register_forward_pre_hook(_in_eval_mode) for module in frozen),
        *(module.register_forward_pre_hook(_itself_in_eval_mode) for module in holders),
    ]


def _in_eval_mode(module: nn.Module, _inputs: Any) -> None:
    # The noise of NEFTune, which a user asked for, acts only in train mode.
    if module.training and not hasattr(module, "neftune_noise_alpha"):
        module.eval()


def _itself_in_eval_mode(module: nn.Module, _inputs: Any) -> None:
    module.training = False


def _holders(model: nn.Module, plan: Plan, anatomy: Anatomy) -> list[nn.Module]:
    """The modules around frozen blocks that drop parts of the embeddings by a function, not by a module (BART)."""
    blocks = [block.name for mode, block in zip(plan.blocks, anatomy.blocks, strict=True) if mode.mode == "frozen"]
    around = {name.rpartition(".")[0].rpartition(".")[0] for name in blocks}  # "encoder" of "encoder.layers.0"
    return [model.get_submodule(name) for name in sorted(around) if isinstance(_dropout(model, name), float)]


def _dropout(model: nn.Module, name: str) -> Any:
    return getattr(model.get_submodule(name), "dropout", None) if name else None


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
    """The modules of the base model outside blocks, final norm and head: embeddings, their norms and dropouts."""
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
