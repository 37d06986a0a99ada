"""Observe a forward pass, and end it early once enough has been seen.

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
    """Ends a forward pass when it is called, in a hook or instead of a function of the model.

    Attributes:
        reached: whether it was called.
        value: the argument of that call.
    """

    def __init__(self) -> None:
        self.reached = False
        self.value: Any = None

    def __call__(self, value: Any = None) -> NoReturn:
        self.reached, self.value = True, value
        raise _Stopped(self)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Gives a `Stop`. When it is called inside this context, the rest of the context is skipped."""
    stop = Stop()
    try:
        yield stop
    except _Stopped as stopped:
        if stopped.stop is not stop:
            raise


@contextmanager
def observe(model: nn.Module, blocks: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Inside this context, keep the latest output of the blocks in `blocks` (stream -> block name).

    Gives stream -> hidden states [B, T, d], without gradients.
    """
    states: dict[str, Tensor] = {}

    def note(stream: str) -> Any:
        return lambda _module, _inputs, output: states.__setitem__(stream, hidden_of(output).detach())

    handles = [model.get_submodule(name).register_forward_hook(note(stream)) for stream, name in blocks.items()]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def capture(model: nn.Module, blocks: Mapping[str, str], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The hidden states [B, T, d] that some blocks return for one batch, by stream; no gradients are kept.

    Args:
        model: which is run until the last of the blocks; it must be in eval mode.
        blocks: stream -> block name, in the order in which they run.
        inputs: the arguments of the model by name.
    """
    with observe(model, blocks) as states:
        run_until(model.get_submodule(list(blocks.values())[-1]), model, inputs, grad=False)
    return states


def run_until(module: nn.Module, model: nn.Module, inputs: Mapping[str, Any], *, grad: bool = True) -> Any:
    """Run `model` until `module` returns, and give its output; None when `module` is not called.

    Args:
        module: a module of the model; its earlier hooks run before the pass ends.
        model: which is run.
        inputs: the arguments of the model by name.
        grad: keep gradients where they are enabled; otherwise never.
    """
    with stoppable() as stop:
        handle = module.register_forward_hook(lambda _module, _inputs, output: stop(output))
        try:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                model(**inputs)
        finally:
            handle.remove()
    return stop.value
