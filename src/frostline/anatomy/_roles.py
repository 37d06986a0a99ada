"""What the modules of a block are for, told by their structure."""

from __future__ import annotations

from torch import nn

from frostline.anatomy._model import Role


def is_attention(name: str, module: nn.Module) -> bool:
    """Whether the module that its parent calls `name` mixes tokens, linear attention included."""
    return "Attention" in type(module).__name__ or "attn" in name


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not has_matrix(module, recurse=False)


def has_matrix(module: nn.Module, recurse: bool = True) -> bool:
    """Whether the module holds a tensor of two dimensions or more."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse))


def roles(block: nn.Module) -> dict[nn.Module, Role]:
    """The role of the tensors that each module of the block holds itself.

    Attention is whatever lies under the outermost attention module, feed-forward every other module with a
    weight matrix (and so its bias), routers included.
    """
    found: dict[nn.Module, Role] = {}

    def walk(module: nn.Module, in_attention: bool) -> None:
        if is_norm(module):
            found[module] = Role.NORM
        elif in_attention:
            found[module] = Role.ATTENTION
        else:
            found[module] = Role.FEED_FORWARD if has_matrix(module, recurse=False) else Role.OTHER
        for name, child in module.named_children():
            walk(child, in_attention or is_attention(name, child))

    walk(block, in_attention=False)
    return found
