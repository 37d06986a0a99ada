"""Residual interaction: each block adds the state of an earlier one to what it returns (methods.md 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from frostline.core.errors import FrostlineError
from frostline.hooks import PerThread, hidden_given, hidden_of, with_hidden


def interact(blocks: Sequence[nn.Module], alpha: float, span: int) -> Iterator[RemovableHandle]:
    """Make each block of a stack return h_l = block_l(h_(l-1)) + alpha h_(l-span), for l >= span.

    A recorded state is dropped once it was added. transformers' activation checkpointing does not include the hooks of
    a block, so nothing here runs again in the backward pass.

    Args:
        blocks: of one stack, in order.
        alpha: the weight of the earlier state.
        span: how many blocks earlier that state is.
    """
    residual = _Residual(len(blocks), alpha, span)
    for index, block in enumerate(blocks):
        # These hooks run first: they record the state unchanged, and all other hooks see the new output of the block.
        yield block.register_forward_pre_hook(partial(residual.enter, index), prepend=True, with_kwargs=True)
        yield block.register_forward_hook(partial(residual.leave, index), prepend=True, always_call=True)


@dataclass
class _Pass:
    """One pass through a stack: the block that comes next, whether one is running now, and recorded states."""

    following: int = 0
    inside: bool = False
    states: dict[int, Tensor] = field(default_factory=dict)


class _Passes(PerThread):
    """The passes through one stack that are under way in a thread. Several where one is called within another."""

    def __init__(self) -> None:
        self.stack: list[_Pass] = []


class _Residual:
    def __init__(self, blocks: int, alpha: float, span: int) -> None:
        self._blocks, self._alpha, self._span = blocks, alpha, span
        self._passes = _Passes()

    def enter(self, index: int, _block: Any, args: Any, kwargs: Any) -> None:
        stack = self._passes.stack
        while stack and not stack[-1].inside and stack[-1].following != index:
            stack.pop()  # it ended before its last block
        if not stack or stack[-1].inside:
            stack.append(_Pass())
        stack[-1].inside = True
        if index + self._span <= self._blocks:
            stack[-1].states[index] = hidden_given(args, kwargs)

    def leave(self, index: int, _block: Any, _inputs: Any, output: Any) -> Any:
        stack = self._passes.stack
        current = stack[-1]
        current.inside, current.following = False, index + 1
        if output is None or index + 1 == self._blocks:  # an error in the block, or the end of the pass
            stack.pop()
        earlier = index + 1 - self._span
        if output is None or earlier < 0:
            return None
        if earlier not in current.states:
            raise FrostlineError(
                "forward.residual needs every block to run once in each pass and in order, but a block ran again: use "
                "no activation checkpointing around whole blocks (as FSDP's)"
            )
        hidden = hidden_of(output)
        return with_hidden(output, hidden + self._alpha * current.states.pop(earlier).to(hidden.dtype))
