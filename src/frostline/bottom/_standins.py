"""Stand-ins: the model's own forward runs on, and the frozen bottom gives its stored states back.

    B rows, T tokens, d hidden width

While states are fed, a call of a block below the boundary passes on what it is given, and that of the last of them
returns the stored states. Calls of embeddings that only feed those blocks give zeros [B, T, d] of one element, seen
through strides of 0. Masks, positions, rotary tables, token types and the search for a row's last token stay the
model's own. While nothing is fed, the bottom runs as ever. Every module stays in its place, with its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frostline.bottom._cut import MADE, BlockReturn, Cut, StackCut, token_ids
from frostline.hooks import CALL, Override, hidden_given


class StandIns:
    """Stand in for the bottom of `model` at `cut`, until `remove`.

    Args:
        model: its bottom is frozen.
        cut: where, and what each part below gives to what lies above.
        before_own: called before a module of the bottom runs itself, since no states are fed.
    """

    def __init__(self, model: nn.Module, cut: Cut, before_own: Callable[[], None] = lambda: None) -> None:
        self.cut, self._before_own = cut, before_own
        self._states: dict[str, Tensor] = {}
        self._overrides: dict[str, Override] = {}
        self.running: tuple[nn.Module, ...] = tuple(model.get_submodule(name) for name in cut.running)
        for stack in cut.stacks:
            self._stand_in(model, stack)

    def feed(self, states: Mapping[str, Tensor]) -> None:
        """Give the states of the batch that comes next: stream -> [B, T, d]."""
        self._states = {stack.stream: states[stack.stream].to(stack.state_dtype) for stack in self.cut.stacks}

    def clear(self) -> None:
        """From here on the bottom runs itself."""
        self._states = {}

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules whose calls are taken."""
        return tuple(override.module for override in self._overrides.values())

    def cover(self, name: str) -> bool:
        """Whether the parameter called `name` lies in a module whose calls are taken."""
        return name.startswith(tuple(f"{path}." for path in self._overrides))

    def remove(self) -> None:
        """Every module runs itself again."""
        for override in self._overrides.values():
            override.remove()
        self._overrides = {}

    def _stand_in(self, model: nn.Module, stack: StackCut) -> None:
        for path in stack.embeddings:
            self._take(model, path, partial(_zeros, self.cut.width, stack.dtype))
        last = len(stack.blocks) - 1
        for position, (path, returned) in enumerate(zip(stack.blocks, stack.returns, strict=True)):
            self._take(model, path, partial(self._give, returned, stack.stream if position == last else None))

    def _take(self, model: nn.Module, path: str, instead: Callable[..., Any]) -> None:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._states:
                return instead(override.own, args, kwargs)
            self._before_own()
            return override.own(*args, **kwargs)

        override = self._overrides[path] = Override(model.get_submodule(path), run, CALL)

    def _give(self, returned: BlockReturn, stream: str | None, own: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What a block would return, with the hidden states passed on, or (given a `stream`) the stored ones."""
        result = hidden_given(args, kwargs) if stream is None else self._states[stream]
        if not returned.in_tuple:
            return result
        made: tuple[Any, ...] = ()
        if returned.needs_block:
            with torch.no_grad():
                made = own(*args, **kwargs)
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        extras = (
            made[position] if extra == MADE else None if extra is None else given[extra]
            for position, extra in enumerate(returned.extras, start=1)
        )
        return (result, *extras)


def _zeros(width: int, dtype: torch.dtype, _own: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """Zeros [*ids, width] that take no memory and no time."""
    ids = token_ids((*args, *kwargs.values()))
    assert ids is not None, "an embedding is called with token ids"
    return torch.zeros((), dtype=dtype, device=ids.device).expand(*ids.shape, width)
