"""Run a model to learn about it, and leave it as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from frostline.hooks._running import device_of


@contextmanager
def undisturbed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside, `model` is in eval mode (or, with `training`, in train mode) and gradients are enabled.

    Training flags and generator states are put back afterwards. Gradients of parameters are the caller's to
    leave alone: ask `torch.autograd.grad` for them.
    """
    flags = {module: module.training for module in model.modules()}
    device = device_of(model)
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            model.train(training)
            with torch.enable_grad():
                yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def replaced(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Inside, the attribute `name` of this one module is `value`, also where its class has one."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        own.pop(name, None)
        own.update(before)


@contextmanager
def forwards(changed: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, each of these modules runs another forward."""
    with ExitStack() as stack:
        for module, forward in changed.items():
            stack.enter_context(replaced(module, "forward", forward))
        yield


class ForwardPatch:
    """Puts `forward` over the forward of one module, which stays at hand as `own`, with the same signature.

    An attribute of the module: wrappers like DDP and autocast call it, where hooks would miss them.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.own = module.forward
        self._names = list(inspect.signature(self.own).parameters)
        self._module, self._was_patched = module, "forward" in vars(module)

        @wraps(self.own)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        self._patched = patched
        vars(module)["forward"] = patched

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, each under the name of its parameter."""
        return dict(zip(self._names, args, strict=False)) | dict(kwargs)

    def remove(self) -> None:
        """Puts the module's own forward back, unless another one was put over this since."""
        attributes = vars(self._module)
        if attributes.get("forward") is self._patched:
            if self._was_patched:
                attributes["forward"] = self.own
            else:
                del attributes["forward"]


@contextmanager
def all_trained(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside, every parameter that can requires gradients; gives those."""
    able = [parameter for parameter in model.parameters() if parameter.is_floating_point() and not parameter.is_meta]
    flags = [parameter.requires_grad for parameter in able]
    try:
        for parameter in able:
            parameter.requires_grad_()
        yield able
    finally:
        for parameter, flag in zip(able, flags, strict=True):
            parameter.requires_grad_(flag)


def generator_state(device: torch.device) -> Tensor:
    """The state of what draws random numbers on `device`."""
    if device.type == "cpu":
        return torch.random.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returned, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
