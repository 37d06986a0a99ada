"""The last block at the positions that are read: keys and values of every token, the rest only there.

Two passes of the block's own forward. The first ends when it calls its attention function, which is then handed
the keys and values of every token. The second runs on the hidden states that are read; its attention function
gets their queries beside the keys and values of the first.

    B rows, T tokens, M positions read in a row, H heads, G groups of key heads, d hidden width, h head width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frostline.core.errors import FrostlineError
from frostline.hooks import (
    Override,
    Stop,
    attention_implementation,
    attribute_set,
    hidden_of,
    hook_attention,
    overridden,
    stoppable,
    undisturbed,
    uses_attention_function,
    with_hidden,
)
from frostline.loss_positions._arguments import gather_arguments, without_caches
from frostline.loss_positions._positions import Positions

# Above this share of positions, two passes cost more than one.
_MOST_WORTH_GATHERING = 0.75
_KNOWN_ATTENTION = ("sdpa", "eager")


class RunsWhole(FrostlineError):
    """The last block cannot be narrowed; the message says why."""


@dataclass(frozen=True)
class Sides:
    """The self-attention module of a block, and its children that make only queries, or only keys and values.

    Each child comes with the width of its output.
    """

    attention: nn.Module
    queries: Mapping[nn.Module, int]
    keys: Mapping[nn.Module, int]


class NarrowBlock:
    """Replaces the forward of a last block, until `remove`. While `positions` is None the block runs whole."""

    def __init__(self, block: nn.Module, sides: Sides) -> None:
        self.positions: Positions | None = None
        self._block, self._sides = block, sides
        self._pass: _KeysPass | _ReadPass | None = None
        self._hook = hook_attention(sides.attention, self._attend)
        self._patch = Override(block, self._forward)
        self._own = self._patch.own

    def set_positions(self, read: Tensor, even_if_many: bool = False) -> None:
        """What is read in the next pass, [B, T]; so many positions that it would not pay: the whole block."""
        positions = Positions.of(read)
        pays = positions.index.shape[1] <= _MOST_WORTH_GATHERING * positions.length
        self.positions = positions if pays or even_if_many else None

    def remove(self) -> None:
        self.positions = None
        self._hook.remove()
        self._patch.remove()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.positions is None:
            return self._own(*args, **kwargs)
        # Backward may run the passes again, when `positions` are another batch's.
        passes = partial(self._two_passes, self.positions)
        block: Any = self._block
        if getattr(block, "gradient_checkpointing", False) and block.training:
            return block._gradient_checkpointing_func(partial(passes, **kwargs), *args)
        return passes(*args, **kwargs)

    def _two_passes(self, positions: Positions, *args: Any, **kwargs: Any) -> Any:
        arguments = without_caches(self._patch.by_name(args, kwargs))
        with attribute_set(self._block, "gradient_checkpointing", False):
            key, value = self._keys_and_values(arguments)
            with self._running(_ReadPass(key, value, positions), self._sides.keys):
                output = self._own(**gather_arguments(arguments, positions))
        return with_hidden(output, positions.scatter(hidden_of(output)))

    def _keys_and_values(self, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        with stoppable() as stop, self._running(_KeysPass(stop), self._sides.queries):
            self._own(**arguments)
        if stop.reached:
            key, value = stop.value
            return key, value
        raise RunsWhole(f"{type(self._block).__name__} did not reach its attention function")

    @contextmanager
    def _running(self, this: _KeysPass | _ReadPass, idle: Mapping[nn.Module, int]) -> Iterator[None]:
        self._pass = this
        try:
            with overridden({module: partial(_zeros, width) for module, width in idle.items()}):
                yield
        finally:
            self._pass = None

    def _attend(
        self,
        attend: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        if isinstance(self._pass, _KeysPass):
            self._pass.stop((key, value))
        if isinstance(self._pass, _ReadPass):
            key, value = self._pass.key, self._pass.value
            if attention_mask is None and _is_causal(module, options):
                attention_mask = _causal_rows(self._pass.positions)
        return attend(module, query, key, value, attention_mask, **options)


def find_sides(model: Any, block: nn.Module, inputs: Mapping[str, Any]) -> Sides:
    """What makes queries in the self-attention of `block`, and what makes keys and values: seen by running once.

    Raises `RunsWhole` when the block does not attend through transformers' attention functions.
    """
    candidates = [module for module in block.modules() if uses_attention_function(module)]
    if not candidates:
        raise RunsWhole(f"{type(block).__name__} does not use transformers' attention functions")
    outputs: list[tuple[nn.Module, Tensor]] = []
    found: list[Sides] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        traced = output if output.requires_grad else output.detach().requires_grad_()
        outputs.append((module, traced))
        return traced if traced is output else traced.clone()

    def attend(
        attend: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> Any:
        if not found:
            own = [(child, output) for child, output in outputs if child in set(module.children())]
            for_queries = _reaching([query], own)
            for_keys = _reaching([key, value], own)
            found.append(Sides(module, _only(for_queries, for_keys), _only(for_keys, for_queries)))
        return attend(module, query, key, value, *args, **kw)

    hooks: list[Any] = [hook_attention(module, attend) for module in candidates]
    hooks += [child.register_forward_hook(note) for module in candidates for child in module.children()]
    try:
        with undisturbed(model):
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise RunsWhole(f"{type(block).__name__} did not reach its attention function")
    implementation = attention_implementation(found[0].attention)
    if implementation not in _KNOWN_ATTENTION:
        raise RunsWhole(f"attention '{implementation}' is not one of {', '.join(_KNOWN_ATTENTION)}")
    return found[0]


def _reaching(ends: list[Tensor], outputs: Iterable[tuple[nn.Module, Tensor]]) -> dict[nn.Module, int]:
    """The modules on whose output one of `ends` depends, and the widths of those outputs."""
    connected = [end for end in ends if end.requires_grad]
    if not connected:
        return {}
    sums = torch.stack([end.sum() for end in connected]).sum()
    return {
        module: output.shape[-1]
        for module, output in outputs
        if torch.autograd.grad(sums, output, retain_graph=True, allow_unused=True)[0] is not None
    }


def _only(these: Mapping[nn.Module, int], not_those: Mapping[nn.Module, int]) -> dict[nn.Module, int]:
    return {module: width for module, width in these.items() if module not in not_those}


@dataclass(frozen=True)
class _KeysPass:
    """Running until the keys and values of every token are there."""

    stop: Stop


@dataclass(frozen=True)
class _ReadPass:
    """Running at `positions`, with the key and value [B, G, T, h] of every token."""

    key: Tensor
    value: Tensor
    positions: Positions


def _zeros(width: int, states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """In the place of a module whose output nothing reads."""
    return states.new_zeros(()).expand(*states.shape[:-1], width)


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether an attention without a mask looks back only: transformers' sdpa does so by a flag."""
    if attention_implementation(module) != "sdpa":
        return False
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _causal_rows(positions: Positions) -> Tensor:
    """Which tokens each position looks back at, [B, 1, M, T]."""
    tokens = torch.arange(positions.length, device=positions.index.device)
    return (tokens <= positions.index[:, :, None])[:, None]
