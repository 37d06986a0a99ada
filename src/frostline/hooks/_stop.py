"""Watch a forward pass, and end it where enough has been seen.

B rows, T tokens, d hidden width
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from frostline.hooks._states import hidden_of


class _Stopped(Exception):
    def __init__(self, stop: Stop) -> None:
        self.stop = stop


class Stop:
    """Ends a forward pass from within: call it in a hook, or in the place of a function. `reached` says that it was
    called, and `value` is what it was called with."""

    def __init__(self) -> None:
        self.reached = False
        self.value: Any = None

    def __call__(self, value: Any = None) -> NoReturn:
        self.reached, self.value = True, value
        raise _Stopped(self)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, a forward pass may be ended by the `Stop` that is given; what comes after it in the block is left out."""
    stop = Stop()
    try:
        yield stop
    except _Stopped as stopped:
        if stopped.stop is not stop:
            raise


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
    with observe(model, places) as states:
        run_until(model.get_submodule(list(places.values())[-1]), model, inputs, grad=False)
    return states


def run_until(module: nn.Module, model: nn.Module, inputs: Mapping[str, Any], *, grad: bool = True) -> Any:
    """Run `model` until `module` has returned, and give what it returned; None when it does not run.

    Args:
        module: a module of the model, whose hooks have seen its output when the pass ends.
        model: what is called.
        inputs: its arguments by name.
        grad: whether gradients are kept, where they are enabled.
    """
    with stoppable() as stop:
        handle = module.register_forward_hook(lambda _module, _inputs, output: stop(output))
        try:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                model(**inputs)
        finally:
            handle.remove()
    return stop.value
