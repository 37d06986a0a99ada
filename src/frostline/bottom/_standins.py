"""Stand-ins: the model's own forward runs on, and the frozen bottom gives its stored states back.

    B rows, T tokens, d hidden width

Blocks below the boundary are replaced in their list by modules without weights that pass on what they are given;
the last of them returns the stored states. Embeddings that only feed those blocks are replaced by zeros [B, T, d]
of one element, seen through strides of 0. Masks, positions, rotary tables, token types and the search for a
row's last token stay the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.bottom._cut import MADE, BlockReturn, Cut, StackCut, token_ids
from frostline.core.errors import FrostlineError


class StandIns:
    """Replaces the bottom of `model` at `cut`, until `remove`.

    `feed` gives the states of the batch that comes next: stream -> [B, T, d].
    """

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self.cut = cut
        self._states: dict[str, Tensor] = {}
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        for stack in cut.stacks:
            self._replace_stack(model, stack)

    def feed(self, states: Mapping[str, Tensor]) -> None:
        self._states = {stack.stream: states[stack.stream].to(stack.state_dtype) for stack in self.cut.stacks}

    def clear(self) -> None:
        self._states = {}

    def states(self, stream: str) -> Tensor:
        if stream not in self._states:
            raise FrostlineError(
                "the frozen bottom is out of the model while it trains from the activation cache: run other inputs "
                "inside `with trainer.whole_model():`"
            )
        return self._states[stream]

    @property
    def originals(self) -> tuple[nn.Module, ...]:
        """The modules that are out of the model."""
        return tuple(original for _, _, original in self._replaced)

    def remove(self) -> None:
        """Put every module back in its place."""
        for parent, name, original in reversed(self._replaced):
            parent._modules[name] = original
        self._replaced = []

    def _replace_stack(self, model: nn.Module, stack: StackCut) -> None:
        for name in stack.embeddings:
            self._put(model, name, HollowEmbedding(self.cut.width, stack.dtype))
        last = len(stack.blocks) - 1
        for position, (name, returned) in enumerate(zip(stack.blocks, stack.returns, strict=True)):
            stream = stack.stream if position == last else None
            self._put(model, name, BlockStandIn(model.get_submodule(name), returned, self, stream))

    def _put(self, model: nn.Module, path: str, module: nn.Module) -> None:
        where, _, name = path.rpartition(".")
        parent = model.get_submodule(where)
        self._replaced.append((parent, name, parent.get_submodule(name)))
        parent._modules[name] = module


class BlockStandIn(nn.Module):
    """Returns what its block would, with the hidden states passed on, or (given a `stream`) the stored ones."""

    def __init__(self, block: nn.Module, returned: BlockReturn, owner: StandIns, stream: str | None) -> None:
        super().__init__()
        own = set(vars(self))
        for name, value in vars(block).items():  # a model's forward may read its blocks' plain attributes
            if name not in own and isinstance(value, str | int | float | bool | tuple | None):
                setattr(self, name, value)
        self._returned, self._owner, self._stream = returned, owner, stream
        # In a tuple, so that its weights are no part of the model's.
        self.running = (block,) if returned.needs_block else ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        result = hidden if self._stream is None else self._owner.states(self._stream)
        if not self._returned.in_tuple:
            return result
        made: tuple[Any, ...] = ()
        if self.running:
            with torch.no_grad():
                made = self.running[0].eval()(*args, **kwargs)
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        extras = (
            made[position] if extra == MADE else None if extra is None else given[extra]
            for position, extra in enumerate(self._returned.extras, start=1)
        )
        return (result, *extras)


class HollowEmbedding(nn.Module):
    """Zeros [*ids, width] that take no memory and no time."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        ids = token_ids((*args, *kwargs.values()))
        assert ids is not None, "an embedding is called with token ids"
        return torch.zeros((), dtype=self.dtype, device=ids.device).expand(*ids.shape, self.width)
