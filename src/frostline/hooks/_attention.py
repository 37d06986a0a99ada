"""Hooks around the attention function of a module: they see and may change its queries, keys, values and mask.

transformers looks attention functions up in a registry, by the name in the config of the attention module. A hooked
module gets a copy of its config with the name of the function that this file registers. The model's own config stays
as it is, because masks are made from it. The registered function calls two kinds of hooks: those that
`hook_attention` added to the module for all calls, and those that `attention_call` gave one call alone. The latter are
one more argument of that call, which attention modules hand on to their function.

    B rows, H heads, G groups of key heads, Q queries, T keys, h head width
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from frostline.core.errors import FrostlineError

_NAME = "frostline"
_ATTRIBUTE = "_frostline_attention"
_KEYWORD, _MASK = "frostline_call", "attention_mask"  # the arguments that carry the hooks of one call
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
        """Called instead of the attention of `module`. Returns [B, Q, H, h] and the attention weights, or None.

        Args:
            attend: the next hook or the module's own attention; it takes all the arguments after it.
            module: the attention module.
            query: [B, H, Q, h].
            key: [B, G, T, h].
            value: [B, G, T, h].
            attention_mask: as the module's own attention function gets it.
            options: all other arguments of the attention function.
        """
        ...


class AttentionHandle:
    """Removes one hook. After the last one is removed, the module is as it was before."""

    def __init__(self, module: nn.Module, hook: AttentionHook) -> None:
        self._module, self._hook = module, hook

    def remove(self) -> None:
        hooked: _Hooked | None = getattr(self._module, _ATTRIBUTE, None)
        if hooked is None or self._hook not in hooked.hooks:
            return
        hooked.hooks.remove(self._hook)
        if hooked.hooks:
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
    """Whether `hook_attention` can hook the module."""
    return uses_attention_function(module) or _has_method(module)


def attention_implementation(module: nn.Module) -> str:
    """The name of the module's own attention function (`sdpa`, `eager`, ...), hooked or not."""
    hooked: _Hooked | None = getattr(module, _ATTRIBUTE, None)
    config: Any = module.config if hooked is None else hooked.config
    return config._attn_implementation or "eager"


def hook_attention(module: nn.Module, hook: AttentionHook) -> AttentionHandle:
    """Call `hook` instead of the attention function of this one `module`.

    Of several hooks, the one added last is called first. Raises `NotHookable` when the module computes its attention
    without transformers' attention functions.
    """
    if not hookable(module):
        raise NotHookable(f"{type(module).__name__} does not use transformers' attention functions")
    hooked: _Hooked | None = getattr(module, _ATTRIBUTE, None)
    if hooked is None:
        hooked = _Hooked(module)
        setattr(module, _ATTRIBUTE, hooked)
        if hooked.own is None:
            renamed = copy.copy(hooked.config)
            # The public setter would change the sub-configs too, which the copy shares with the model's.
            renamed._attn_implementation_internal = _NAME
            module.config = renamed
        else:
            setattr(module, _METHOD, partial(_method, module))
    hooked.hooks.append(hook)
    return AttentionHandle(module, hook)


def open_attention(module: nn.Module) -> AttentionHandle:
    """Make `module` ready for `attention_call`, without a change of what it computes.

    Raises `NotHookable` where `hook_attention` does.
    """
    return hook_attention(module, _unchanged)


def attention_call(
    run: Callable[..., Any],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    innermost: AttentionHook | None = None,
    outermost: AttentionHook | None = None,
) -> Any:
    """Return `run(*args, **kwargs)`, which calls `module` once: in this call, these hooks run too.

    The hooks go along with the arguments, so no other call has them, whatever thread it is in. `run` may use this
    function again for the same call: its hooks are then added to these.

    Args:
        run: calls `module` with the arguments that it gets.
        module: an attention module that `open_attention` or `hook_attention` has prepared.
        args: of the call.
        kwargs: of the call.
        innermost: a hook that runs after all hooks of the module.
        outermost: a hook that runs before all hooks of the module.

    Raises `FrostlineError` when the module is not prepared, or does not give its attention function the arguments that
    it does not know: these hooks would not be called then.
    """
    hooked: _Hooked | None = getattr(module, _ATTRIBUTE, None)
    if hooked is None:
        raise FrostlineError(f"{type(module).__name__} does not call hooks yet: use open_attention on it first")
    if hooked.own is None:
        carrier = _KEYWORD
    else:
        # The method gets no more than the mask, so the hooks are in its place.
        carrier, kwargs = _MASK, dict(zip(_parameters(module), args, strict=False)) | dict(kwargs)
        args = ()
    call = kwargs.get(carrier)
    if isinstance(call, _CallHooks):
        call.add(innermost, outermost)
        return run(*args, **kwargs)
    call = _CallHooks(mask=call)
    call.add(innermost, outermost)
    result = run(*args, **{**kwargs, carrier: call})
    if not call.ran:
        raise FrostlineError(f"{type(module).__name__} does not give its attention function all arguments of a call")
    return result


class _CallHooks:
    """The hooks of one call of a module, in the order of adding. `mask` is what they replace in the arguments."""

    def __init__(self, mask: Any = None) -> None:
        self.innermost: tuple[AttentionHook, ...] = ()
        self.outermost: tuple[AttentionHook, ...] = ()
        self.mask, self.ran = mask, False

    def add(self, innermost: AttentionHook | None, outermost: AttentionHook | None) -> None:
        self.innermost += () if innermost is None else (innermost,)
        self.outermost += () if outermost is None else (outermost,)


def _unchanged(attend: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return attend(*args, **options)


class _Hooked:
    """What is kept for a hooked module: its own config, attention function or method, and its hooks.

    `eager` is the function that it uses where the registry has none. The hooks are in the order of adding.
    """

    def __init__(self, module: nn.Module) -> None:
        self.config: Any = module.config
        self.own: Callable[..., Any] | None = getattr(module, _METHOD) if _has_method(module) else None
        self.eager: Any = _forward_of(module).__globals__.get("eager_attention_forward")
        self.hooks: list[AttentionHook] = []

    def around(self, attend: Callable[..., Any], call: _CallHooks | None) -> Callable[..., Any]:
        """`attend` with all hooks around it, those of the module and those of the call."""
        if call is None:
            call = _CallHooks()
        call.ran = True
        for hook in (*call.innermost, *self.hooks, *call.outermost):
            attend = partial(hook, attend)
        return attend


def _forward_of(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def _attention(module: nn.Module, *args: Any, frostline_call: _CallHooks | None = None, **options: Any) -> Any:
    """The function in transformers' registry: it calls the hooks of `module` and then its own attention."""
    hooked: _Hooked = getattr(module, _ATTRIBUTE)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_implementation(module), hooked.eager)
    return hooked.around(attend, frostline_call)(module, *args, **options)


def _has_method(module: nn.Module) -> bool:
    method = getattr(type(module), _METHOD, None)
    return method is not None and list(inspect.signature(method).parameters)[1:] == _METHOD_PARAMETERS


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]


_METHOD_PARAMETERS = ["query", "key", "value", "attention_mask"]


def _method(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None) -> Any:
    """Replaces the attention method of a module that has one (GPT-J)."""
    hooked: _Hooked = getattr(module, _ATTRIBUTE)
    call = attention_mask if isinstance(attention_mask, _CallHooks) else None
    mask = attention_mask if call is None else call.mask

    def attend(_: nn.Module, *args: Any, **options: Any) -> Any:
        assert hooked.own is not None
        output, weights = hooked.own(*args)
        return output.transpose(1, 2), weights

    output, weights = hooked.around(attend, call)(module, query, key, value, mask)
    return output.transpose(1, 2), weights


AttentionInterface.register(_NAME, _attention)
