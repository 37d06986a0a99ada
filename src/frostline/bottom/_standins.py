"""Stand-ins for the frozen bottom: the model's own forward runs, and the bottom returns stored states.

    B rows, T tokens, d hidden width

While states are fed:

- an embedding returns zeros [B, T, d]. They are a single element in memory, expanded with strides of 0. Their values
  do not matter, because no block computes with them, but the model reads their shape, dtype and device;
- a block below the boundary returns the hidden states that it is given, unchanged;
- the last of these blocks returns the stored states instead.

So everything above the boundary gets what the bottom would have computed. Masks, positions, rotary tables, token types
and the search for the last token of a row are still the model's own code, on the real token ids.

While no states are fed, the bottom runs as usual. Every module stays in the model, with its weights.
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
    """Replaces the calls of the bottom of `model`, until `remove`.

    Args:
        model: whose bottom is frozen.
        cut: where the bottom ends, and what each of its blocks returns.
        before_own: called before a module of the bottom runs itself because no states are fed.
    """

    def __init__(self, model: nn.Module, cut: Cut, before_own: Callable[[], None] = lambda: None) -> None:
        self.cut, self._before_own = cut, before_own
        self._states: dict[str, Tensor] = {}
        self._overrides: dict[str, Override] = {}
        self.running: tuple[nn.Module, ...] = tuple(model.get_submodule(name) for name in cut.running)
        for stack in cut.stacks:
            self._stand_in(model, stack)

    def feed(self, states: Mapping[str, Tensor]) -> None:
        """Supply the states of the next batch: stream -> [B, T, d]."""
        self._states = {stack.stream: states[stack.stream].to(stack.state_dtype) for stack in self.cut.stacks}

    def clear(self) -> None:
        """Drop the states: from now on the bottom runs itself."""
        self._states = {}

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules whose calls are replaced."""
        return tuple(override.module for override in self._overrides.values())

    def cover(self, name: str) -> bool:
        """Whether the parameter `name` lies in a module whose calls are replaced."""
        return name.startswith(tuple(f"{path}." for path in self._overrides))

    def remove(self) -> None:
        """Give every module its own calls back."""
        for override in self._overrides.values():
            override.remove()
        self._overrides = {}

    def _stand_in(self, model: nn.Module, stack: StackCut) -> None:
        """Replace the calls of the embeddings and blocks of one stack."""
        for path in stack.embeddings:
            self._replace(model, path, partial(_zeros, self.cut.width, stack.dtype))
        last = len(stack.blocks) - 1
        for position, (path, returned) in enumerate(zip(stack.blocks, stack.returns, strict=True)):
            self._replace(
                model, path, partial(self._returned_states, returned, stack.stream if position == last else None)
            )

    def _replace(self, model: nn.Module, path: str, instead: Callable[..., Any]) -> None:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._states:
                return instead(override.own, args, kwargs)
            self._before_own()
            return override.own(*args, **kwargs)

        # `CALL` replaces the whole call: hooks on blocks of the bottom do not run on stand-in values.
        override = self._overrides[path] = Override(model.get_submodule(path), run, CALL)

    def _returned_states(
        self, returned: BlockReturn, stream: str | None, own: Any, args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """What a block would return, with other hidden states.

        They are those the block was given, or the stored ones of `stream` if it is the last block of its stack.
        """
        result = hidden_given(args, kwargs) if stream is None else self._states[stream]
        if not returned.in_tuple:
            return result
        # Entries after the hidden states: the three cases that `_cut.py` describes.
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
    """Zeros [B, T, width] for ids [B, T]: one element, expanded, so they take no memory and no time."""
    ids = token_ids((*args, *kwargs.values()))
    assert ids is not None, "an embedding is called with token ids"
    return torch.zeros((), dtype=dtype, device=ids.device).expand(*ids.shape, width)
