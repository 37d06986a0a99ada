"""The last block at the loss positions: it computes keys and values of every token, and all else only there.

    B rows, T tokens, M loss positions of a row, H heads, G groups of key heads, d hidden width, h head width

Nothing after the last block mixes tokens, so its output matters only at the loss positions. Inside the block, only the
attention mixes tokens: the output at a position needs the query of that position, and the keys and values of all
tokens. Norms, projections, MLP and residuals treat each position alone. So the block's own forward runs twice:

1. `_KeysPass`, on all tokens [B, T, d]. It ends when the block calls its attention function, which gets the keys and
   values [B, G, T, h] of every token. The modules that make only queries return zeros: nothing reads them.
2. `_QueriesPass`, on the hidden states of the loss positions [B, M, d]. The modules that make only keys and values
   return zeros. The attention function gets the queries of this pass, and the keys and values of the first. The block's
   output [B, M, d] is then put back into zeros [B, T, d], at the loss positions.

Both passes are ordinary autograd operations, so the gradients flow through both. A block in which something else mixes
tokens would give another result: `use_loss_positions` compares loss and gradients with the model's own before training.
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

# With a larger share of loss positions, two passes cost more than one.
_MOST_WORTH_GATHERING = 0.75
_KNOWN_ATTENTION = ("sdpa", "eager")


class NotNarrowable(FrostlineError):
    """The last block cannot run at the loss positions alone; the message says why, in one clause."""


@dataclass(frozen=True)
class Projections:
    """The self-attention module of a block, and those of its children that one of the two passes can leave out.

    Attributes:
        attention: the self-attention module.
        queries: children whose output only the queries depend on, with its width.
        keys: children whose output only the keys and values depend on, with its width.
    """

    attention: nn.Module
    queries: Mapping[nn.Module, int]
    keys: Mapping[nn.Module, int]


class NarrowBlock:
    """Replaces the forward of a last block, until `remove`. While `positions` is None, the block runs on all tokens."""

    def __init__(self, block: nn.Module, projections: Projections) -> None:
        self.positions: Positions | None = None
        self._block, self._projections = block, projections
        self._pass: _KeysPass | _QueriesPass | None = None
        self._hook = hook_attention(projections.attention, self._attend)
        self._patch = Override(block, self._forward)
        self._own = self._patch.own

    def set_positions(self, read: Tensor, even_if_many: bool = False) -> None:
        """Set the loss positions of the next call, as a mask [B, T].

        Where there are so many that two passes would cost more, the block runs on all tokens, unless `even_if_many`.
        """
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
        # With activation checkpointing the backward pass runs both passes again. By then `self.positions` may belong to
        # another batch, so they are bound here. The two passes are checkpointed as one: the block's own checkpointing,
        # around its whole forward, is switched off in `_two_passes`.
        passes = partial(self._two_passes, self.positions)
        block: Any = self._block
        if getattr(block, "gradient_checkpointing", False) and block.training:
            return block._gradient_checkpointing_func(partial(passes, **kwargs), *args)
        return passes(*args, **kwargs)

    def _two_passes(self, positions: Positions, *args: Any, **kwargs: Any) -> Any:
        arguments = without_caches(self._patch.by_name(args, kwargs))
        with attribute_set(self._block, "gradient_checkpointing", False):
            key, value = self._keys_and_values(arguments)  # of every token, [B, G, T, h]
            with self._running(_QueriesPass(key, value, positions), self._projections.keys):
                output = self._own(**gather_arguments(arguments, positions))
        # The rest of the model sees [B, T, d] as always. Where nothing is read, it is zero and so is its gradient.
        return with_hidden(output, positions.scatter(hidden_of(output)))

    def _keys_and_values(self, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        with stoppable() as stop, self._running(_KeysPass(stop), self._projections.queries):
            self._own(**arguments)
        if stop.reached:
            key, value = stop.value
            return key, value
        raise NotNarrowable(f"{type(self._block).__name__} did not reach its attention function")

    @contextmanager
    def _running(self, this: _KeysPass | _QueriesPass, idle: Mapping[nn.Module, int]) -> Iterator[None]:
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
        """The hook around the block's attention: query [B, H, T or M, h], key and value [B, G, T or M, h]."""
        if isinstance(self._pass, _KeysPass):
            self._pass.stop((key, value))
        if isinstance(self._pass, _QueriesPass):
            # Its own keys and values are those of zeros, or of the loss positions alone.
            key, value = self._pass.key, self._pass.value
            if attention_mask is None and _is_causal(module, options):
                # Without a mask, `is_causal` would compare the index of a query among M with that of a key among T.
                attention_mask = _causal_mask(self._pass.positions)
        return attend(module, query, key, value, attention_mask, **options)


def find_projections(model: Any, block: nn.Module, inputs: Mapping[str, Any]) -> Projections:
    """Find which children of the self-attention of `block` make only queries, and which only keys and values.

    The model runs once on `inputs`. Autograd then tells on which children's outputs the queries depend, and on which
    the keys and values. A child on which both depend (a fused projection, say) runs in both passes.

    Args:
        model: the whole model.
        block: its last block.
        inputs: a small batch.

    Raises `NotNarrowable` when the block does not use one of transformers' attention functions that are known here.
    """
    candidates = [module for module in block.modules() if uses_attention_function(module)]
    if not candidates:
        raise NotNarrowable(f"{type(block).__name__} does not use transformers' attention functions")
    outputs: list[tuple[nn.Module, Tensor]] = []
    found: list[Projections] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        # Frozen projections of frozen states have no graph: begin one at their output.
        traced = output if output.requires_grad else output.detach().requires_grad_()
        outputs.append((module, traced))
        return traced if traced is output else traced.clone()  # a leaf could not be changed in place by the model

    def attend(
        attend: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> Any:
        if not found:  # the first attention that is called is the self-attention; a cross-attention comes later
            own = [(child, output) for child, output in outputs if child in set(module.children())]
            for_queries = _reaching([query], own)
            for_keys = _reaching([key, value], own)
            found.append(Projections(module, _only(for_queries, for_keys), _only(for_keys, for_queries)))
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
        raise NotNarrowable(f"{type(block).__name__} did not reach its attention function")
    implementation = attention_implementation(found[0].attention)
    if implementation not in _KNOWN_ATTENTION:
        raise NotNarrowable(f"its attention is '{implementation}', not one of {', '.join(_KNOWN_ATTENTION)}")
    return found[0]


def _reaching(ends: list[Tensor], outputs: Iterable[tuple[nn.Module, Tensor]]) -> dict[nn.Module, int]:
    """The modules on whose output one of `ends` depends, with the width of that output."""
    connected = [end for end in ends if end.requires_grad]
    if not connected:
        return {}
    sums = torch.stack([end.sum() for end in connected]).sum()
    return {
        module: output.shape[-1]
        for module, output in outputs
        if torch.autograd.grad(sums, output, retain_graph=True, allow_unused=True)[0] is not None
    }


def _only(these: Mapping[nn.Module, int], others: Mapping[nn.Module, int]) -> dict[nn.Module, int]:
    return {module: width for module, width in these.items() if module not in others}


@dataclass(frozen=True)
class _KeysPass:
    """The first pass: it ends once the keys and values of every token are computed."""

    stop: Stop


@dataclass(frozen=True)
class _QueriesPass:
    """The second pass: it runs at `positions`, with the keys and values [B, G, T, h] of every token."""

    key: Tensor
    value: Tensor
    positions: Positions


def _zeros(width: int, states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    """Replaces a module whose output nothing reads: zeros of its shape, a single element in memory."""
    return states.new_zeros(()).expand(*states.shape[:-1], width)


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether an attention without a mask sees earlier tokens only. In transformers' sdpa a flag says so."""
    if attention_implementation(module) != "sdpa":
        return False
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _causal_mask(positions: Positions) -> Tensor:
    """Which tokens each loss position may see: itself and earlier ones, [B, 1, M, T]."""
    tokens = torch.arange(positions.length, device=positions.index.device)
    return (tokens <= positions.index[:, :, None])[:, None]
