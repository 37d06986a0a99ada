"""The role of each module of a block, found from its structure."""

from __future__ import annotations

from torch import nn

from frostline.anatomy._model import Role


def is_attention(name: str, module: nn.Module) -> bool:
    """Whether a module mixes tokens; linear attention does too. `name` is its name in its parent."""
    return "Attention" in type(module).__name__ or "attn" in name


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not has_matrix(module, recurse=False)


def has_matrix(module: nn.Module, recurse: bool = True) -> bool:
    """Whether the module holds a tensor of two dimensions or more."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse))


def roles(block: nn.Module) -> dict[nn.Module, Role]:
    """Module -> the role of the tensors that it holds itself.

    Everything inside the outermost attention module is attention, except norms. Every other module with a weight matrix
    is feed-forward, also a router.
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
