"""Hooks that a user put on modules. They look at a forward pass, or change it, and no model says so."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

_LIBRARIES = ("frostline", "transformers", "accelerate", "peft", "torch")
"""Packages whose hooks are part of how a model runs."""


def foreign_hook(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """The name of the first of `modules` (name, module) that has a user's forward hook; None when none has.

    Args:
        modules: as `nn.Module.named_modules` gives them; some of them.
    """
    for name, module in modules:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(_origin(hook).partition(".")[0] not in _LIBRARIES for hook in hooks):
            return name or type(module).__name__
    return None


def hooks_on(modules: Iterable[nn.Module]) -> int:
    """How many forward hooks `modules` have, whoever put them there."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def _origin(hook: Any) -> str:
    """The module in which a hook was written."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None) or type(hook).__module__)
