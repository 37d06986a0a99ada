"""The one attention function that others hook: see or change what an attention module gives to it.

transformers looks attention functions up in a registry, by the name in the config of the attention module. A
hooked module gets a copy of its config with the name of the function below; the model's own config, by which
masks are made, stays as it is.

    B rows, H heads, G groups of key heads, Q queries, T keys, h head width
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from frostline.core.errors import FrostlineError

_NAME = "frostline"
_ATTRIBUTE = "_frostline_attention"
_METHOD = "_attn"  # of GPT-J: (query, key, value, attention_mask) -> output [B, H, Q, h], weights


class NotHookable(FrostlineError):
    """The module does not look its attention function up in transformers' registry."""


class AttentionHook(Protocol):
    def __call__(
        self,
        attend: Callable[..., tuple[Tensor, Tensor | None]],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """In the place of the attention of `module`: query [B, H, Q, h], key and value [B, G, T, h].

        `attend` takes everything after itself: it is the next hook, or the module's own attention. Returns
        [B, Q, H, h] and the attention weights, or None.
        """
        ...


class AttentionHandle:
    """Removes one hook; the last one removed leaves the module as it was."""

    def __init__(self, module: nn.Module, hook: AttentionHook) -> None:
        self._module, self._hook = module, hook

    def remove(self) -> None:
        hooked: _Hooked | None = getattr(self._module, _ATTRIBUTE, None)
        if hooked is None or not hooked.remove(self._hook) or hooked.inner or hooked.outer:
            return
        if hooked.own is None:
            self._module.config = hooked.config
        else:
            delattr(self._module, _METHOD)
        delattr(self._module, _ATTRIBUTE)


def uses_attention_function(module: nn.Module) -> bool:
    """Whether `module` looks its attention function up in transformers' registry, so that it can be hooked."""
    code = getattr(_forward_of(module), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and hasattr(module, "config")


def hookable(module: nn.Module) -> bool:
    """Whether `hook_attention` takes the module."""
    return uses_attention_function(module) or _has_method(module)


def attention_implementation(module: nn.Module) -> str:
    """The name of the module's own attention function (`sdpa`, `eager`, ...), hooked or not."""
    hooked: _Hooked | None = getattr(module, _ATTRIBUTE, None)
    config: Any = module.config if hooked is None else hooked.config
    return config._attn_implementation or "eager"


def hook_attention(module: nn.Module, hook: AttentionHook, *, innermost: bool = False) -> AttentionHandle:
    """Call `hook` in the place of the attention function of `module`, and of no other module.

    Of several hooks the last one put is called first; `innermost` ones, among which it is the same, come after all
    others. Raises `NotHookable` when the module computes its attention itself.
    """
    if not hookable(module):
        raise NotHookable(f"{type(module).__name__} does not use transformers' attention functions")
    hooked: _Hooked | None = getattr(module, _ATTRIBUTE, None)
    if hooked is None:
        hooked = _Hooked(module.config, getattr(module, _METHOD) if _has_method(module) else None)
        setattr(module, _ATTRIBUTE, hooked)
        if hooked.own is None:
            renamed = copy.copy(hooked.config)
            # The public setter would change the sub-configs too, which the copy shares with the model's.
            renamed._attn_implementation_internal = _NAME
            module.config = renamed
        else:
            setattr(module, _METHOD, partial(_method, module))
    (hooked.inner if innermost else hooked.outer).append(hook)
    return AttentionHandle(module, hook)


class _Hooked:
    """What a hooked module carries: its own config, its own method if it attends by one, and the hooks, innermost ones
    and others, in the order in which they were put."""

    def __init__(self, config: Any, own: Callable[..., Any] | None) -> None:
        self.config, self.own = config, own
        self.inner: list[AttentionHook] = []
        self.outer: list[AttentionHook] = []

    def around(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        """`attend` within all hooks."""
        for hook in (*self.inner, *self.outer):
            attend = partial(hook, attend)
        return attend

    def remove(self, hook: AttentionHook) -> bool:
        """Whether the hook was there."""
        for hooks in (self.inner, self.outer):
            if hook in hooks:
                hooks.remove(hook)
                return True
        return False


def _forward_of(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def _attention(module: nn.Module, *args: Any, **options: Any) -> Any:
    """The registered function."""
    names = _forward_of(module).__globals__
    attend = names["ALL_ATTENTION_FUNCTIONS"].get_interface(
        attention_implementation(module), names.get("eager_attention_forward")
    )
    hooked: _Hooked = getattr(module, _ATTRIBUTE)
    return hooked.around(attend)(module, *args, **options)


def _has_method(module: nn.Module) -> bool:
    method = getattr(type(module), _METHOD, None)
    return method is not None and list(inspect.signature(method).parameters)[1:] == _METHOD_TAKES


_METHOD_TAKES = ["query", "key", "value", "attention_mask"]


def _method(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None) -> Any:
    """In the place of the method."""
    hooked: _Hooked = getattr(module, _ATTRIBUTE)

    def attend(_: nn.Module, *args: Any, **options: Any) -> Any:
        assert hooked.own is not None
        output, weights = hooked.own(*args)
        return output.transpose(1, 2), weights

    output, weights = hooked.around(attend)(module, query, key, value, attention_mask)
    return output.transpose(1, 2), weights


AttentionInterface.register(_NAME, _attention)
