"""The signals that a schedule observes while the model trains. They are measured when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.checkpoints import read_tensors
from frostline.core.errors import unknown_name
from frostline.engine._plasticity import Reference
from frostline.signals import weight_change
from frostline.surgery import Applied, applied_to

OBSERVED_FILE = "observed.safetensors"
CHANGE, GRADIENTS, MOTION, PLASTICITY = "weight_change", "gradient_sum", "weight_motion", "plasticity"
RATE, LOWEST_RATE = "learning_rate", "lowest_learning_rate"
OF_THE_STEP = (PLASTICITY, RATE, LOWEST_RATE)
"""Signals for which the trainer has to tell what it does in the step."""
OBSERVABLE = (CHANGE, GRADIENTS, MOTION, *OF_THE_STEP)
SAMPLED = 1024
"""About so many entries of each tensor are kept for `weight_motion`."""

Shared = Callable[[tuple[float, ...]], tuple[float, ...]]


@dataclass(frozen=True)
class Step:
    """What a trainer tells of the step that it begins.

    Attributes:
        run: makes a forward pass of the model on the step's first batch, as training does.
        mask: the attention mask [B, T] of that batch, if it has one.
        rates: the learning rate of now, and the lowest that is still to come, as shares of `learning_rate`.
    """

    run: Callable[[], Any]
    mask: Callable[[], Tensor | None]
    rates: Callable[[], tuple[float, float]]


class Observer(Mapping[str, Sequence[float]]):
    """Signals of every block under the current plan, by name.

    - `weight_change` (methods.md 1): that of the trained tensors since the plan began, of which a copy is kept.
    - `gradient_sum` (AutoFreeze): the L1 norm of the sum of the gradients of all steps since it was last read, or the
      plan began. The sums take as much memory as the gradients.

    - `weight_motion` (SmartFRZ): the L2 norm of (now - when it was last read, or the plan began), divided by that of
      the tensors now. It is measured on a sample of the trained tensors.
    - `plasticity/N` (Egeria): how far the outputs of the lowest trained block have moved from those of a reference, on
      the batch of the step. The reference is made when the plan begins, and anew after every N readings. It costs a
      pass up to this block, in which the block runs twice.
    - `learning_rate`, `lowest_learning_rate`: the learning rate of now, and the lowest that is still to come, as shares
      of the one in the arguments, the same for all blocks.

    Others are 0 for a block without trained tensors.

    Attributes:
        step: what the trainer is about to do. It is set before the signals are read.

    Args:
        model: what trains.
        names: the signals.
        shared: gives all processes that train together the values of one of them.

    Raises `ConfigError` for a signal that cannot be observed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], shared: Shared = tuple) -> None:
        self._model, self._names, self._shared = model, tuple(sorted(names)), shared
        self.step: Step | None = None
        for name in self._names:
            if _kind(name) not in OBSERVABLE:
                raise unknown_name("signal to observe while training", name, OBSERVABLE)
        self._kept: dict[str, dict[str, Tensor]] = {}
        if CHANGE in self._names:
            self._kept[CHANGE] = {name: tensor.detach().clone() for name, tensor in self._trained().items()}
        if GRADIENTS in self._names:
            self._kept[GRADIENTS] = {name: torch.zeros_like(tensor) for name, tensor in self._trained().items()}
        if MOTION in self._names:
            self._kept[MOTION] = {name: sample.clone() for name, sample in self._samples().items()}
        self._reference = self._made_reference()
        if self._reference is not None:
            self._kept[PLASTICITY] = self._reference.tensors

    def __getitem__(self, name: str) -> tuple[float, ...]:
        if name not in self._names:
            raise KeyError(name)
        read = {CHANGE: self._change, GRADIENTS: self._gradients, MOTION: self._motion, PLASTICITY: self._plasticity}
        with torch.no_grad():
            return self._shared(read[_kind(name)]() if _kind(name) in read else self._rate(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def collect(self) -> None:
        """Add the gradients of this step, if they are observed."""
        if GRADIENTS in self._kept:
            trained = self._trained()
            for name, total in self._kept[GRADIENTS].items():
                if (gradient := trained[name].grad) is not None:
                    total += gradient

    def save(self, folder: Path) -> None:
        """Save what the signals are computed from, if any signal is observed."""
        if self._names:
            tensors = {f"{signal}|{name}": t for signal, kept in self._kept.items() for name, t in kept.items()}
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, folder / OBSERVED_FILE)

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        if self._names:
            saved = read_tensors(folder / OBSERVED_FILE, "the values that the schedule compares with")
            for signal, kept in self._kept.items():
                for name, tensor in kept.items():
                    tensor.copy_(saved[f"{signal}|{name}"])

    def _change(self) -> tuple[float, ...]:
        return tuple(weight_change(self._kept[CHANGE], self._trained(), self._applied.anatomy))

    def _gradients(self) -> tuple[float, ...]:
        sums = self._kept[GRADIENTS]
        found = [
            sum(float(total.abs().sum()) for name, total in sums.items() if name.startswith(f"{block.name}."))
            for block in self._applied.anatomy.blocks
        ]
        for total in sums.values():
            total.zero_()
        return tuple(found)

    def _motion(self) -> tuple[float, ...]:
        now, before = self._samples(), self._kept[MOTION]
        found = []
        for block in self._applied.anatomy.blocks:
            own = [name for name in now if name.startswith(f"{block.name}.")]
            moved = sum(float((now[name] - before[name]).square().sum()) for name in own)
            size = sum(float(now[name].square().sum()) for name in own)
            found.append((moved / size) ** 0.5 if size else 0.0)
        for name, kept in before.items():
            kept.copy_(now[name])
        return tuple(found)

    def _samples(self) -> dict[str, Tensor]:
        # An odd stride crosses all columns of a matrix whose width is a power of two.
        return {name: t.detach().flatten()[:: t.numel() // SAMPLED | 1] for name, t in self._trained().items()}

    def _plasticity(self) -> tuple[float, ...]:
        step, blocks = self._told(), self._applied.anatomy.blocks
        found = [0.0] * len(blocks)
        if self._reference is not None:
            lowest = self._applied.plan.boundary
            block = self._model.get_submodule(blocks[lowest].name)
            found[lowest] = self._reference.read(self._model, block, step.run, step.mask())
        return tuple(found)

    def _made_reference(self) -> Reference | None:
        signal = next((name for name in self._names if _kind(name) == PLASTICITY), None)
        boundary, blocks = self._applied.plan.boundary, self._applied.anatomy.blocks
        if signal is None or boundary >= len(blocks):
            return None
        start = f"{blocks[boundary].name}."
        own = {name.removeprefix(start): t for name, t in self._trained().items() if name.startswith(start)}
        return Reference(own, int(signal.partition("/")[2]))

    def _rate(self, name: str) -> tuple[float, ...]:
        now, lowest = self._told().rates()
        return (now if name == RATE else lowest,) * len(self._applied.anatomy.blocks)

    def _told(self) -> Step:
        assert self.step is not None, "check_own_trainer: the trainer tells of its steps"
        return self.step

    @property
    def _applied(self) -> Applied:
        applied = applied_to(self._model)
        assert applied is not None, "the model has a plan"
        return applied

    def _trained(self) -> dict[str, Tensor]:
        applied = self._applied
        places = tuple(f"{block.name}." for block in applied.anatomy.blocks)
        named = self._model.named_parameters()
        return {name: tensor for name, tensor in named if name in applied.lr_scales and name.startswith(places)}


def _kind(name: str) -> str:
    """`plasticity/4` -> `plasticity`."""
    return name.partition("/")[0]
