"""Run a model to learn about it, and leave it as it was: training flags, random generators, buffers, gradients."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.hooks._passes import passes_in
from frostline.hooks._states import device_of

_LARGEST_BUFFER = 1 << 16
"""Buffers of up to this many elements are copied and restored. Buffers that a forward pass writes to (running means,
counters) are small; larger ones (a quantized matrix, a mask) are constants."""


@dataclass(frozen=True)
class Generators:
    """The states of the random generators of Python, numpy and torch, and of the accelerator, if any."""

    python: Any
    numpy: Any
    cpu: Tensor
    accelerator: Tensor | None
    device: torch.device | None

    @classmethod
    def now(cls, device: torch.device | None = None) -> Generators:
        """The current states; `device` is the accelerator to include."""
        on = None if device is None or device.type in ("cpu", "meta") else device
        own = None if on is None else torch.get_device_module(on).get_rng_state(on)
        return cls(random.getstate(), np.random.get_state(legacy=True), torch.random.get_rng_state(), own, on)

    def restore(self) -> None:
        """Set the generators to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.random.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)

    def same(self, other: Generators) -> bool:
        """Whether torch's generators, the ones that layers draw from, are in the same state."""
        if not torch.equal(self.cpu, other.cpu):
            return False
        if self.accelerator is None or other.accelerator is None:
            return self.accelerator is other.accelerator
        return torch.equal(self.accelerator, other.accelerator)

    def equals(self, other: Generators) -> bool:
        """Whether all generators are in the same state, those of Python and numpy too."""
        mine, its = (tuple(map(repr, each.numpy)) for each in (self, other))
        return self.python == other.python and mine == its and self.same(other)


@contextmanager
def generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Restore every random generator at the end, so that later code draws the same numbers as without this context."""
    before = Generators.now(device)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside this context, every module is in eval mode; at the end each one has its own training flag again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def undisturbed(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Inside this context, `model` is in eval mode (with `training`: in train mode) and gradients are enabled.

    Training flags, buffers, random generators and counts of passes are restored at the end. The gradients of parameters
    are not: use `torch.autograd.grad`, which leaves them alone.
    """
    counts = [(passes, passes.step, passes.made) for passes in passes_in(model)]
    flags = {module: module.training for module in model.modules()}
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta and b.numel() <= _LARGEST_BUFFER]
    try:
        with generators_kept(device_of(model)):
            model.train(training)
            with torch.enable_grad():
                yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        for passes, step, made in counts:
            passes.step, passes.made = step, made
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextmanager
def all_trained(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside this context, every floating-point parameter in memory requires gradients. Gives these parameters."""
    able = [parameter for parameter in model.parameters() if parameter.is_floating_point() and not parameter.is_meta]
    flags = [parameter.requires_grad for parameter in able]
    try:
        for parameter in able:
            parameter.requires_grad_()
        yield able
    finally:
        for parameter, flag in zip(able, flags, strict=True):
            parameter.requires_grad_(flag)
