"""Run a model up to its boundary and keep what crosses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.hooks._running import hidden_of


class _Reached(Exception):
    """Ends the forward pass: nothing above the boundary is wanted."""


@contextmanager
def observe(model: nn.Module, places: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Inside, what the blocks named in `places` (stream -> block) return last is kept: stream -> [B, T, d]."""
    states: dict[str, Tensor] = {}

    def note(stream: str) -> Any:
        return lambda _module, _inputs, output: states.__setitem__(stream, hidden_of(output).detach())

    handles = [model.get_submodule(name).register_forward_hook(note(stream)) for stream, name in places.items()]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def capture(model: nn.Module, places: Mapping[str, str], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs [B, T, d] of the blocks named in `places` (stream -> block) for one batch.

    The forward pass ends at the last of them; no gradient is kept. The model has to be in eval mode.
    """
    last = model.get_submodule(list(places.values())[-1])

    def stop(_module: Any, _inputs: Any, _output: Any) -> None:
        raise _Reached

    with observe(model, places) as states:
        handle = last.register_forward_hook(stop)
        try:
            with torch.no_grad():
                model(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
    return states
