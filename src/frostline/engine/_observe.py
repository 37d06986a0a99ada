"""The signals that a schedule observes while the model trains. They are measured when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.checkpoints import read_tensors
from frostline.core.errors import unknown_name
from frostline.signals import weight_change
from frostline.surgery import Applied, applied_to

OBSERVED_FILE = "observed.safetensors"
CHANGE, GRADIENTS = "weight_change", "gradient_sum"
OBSERVABLE = (CHANGE, GRADIENTS)

Shared = Callable[[tuple[float, ...]], tuple[float, ...]]


class Observer(Mapping[str, Sequence[float]]):
    """Signals of every block under the current plan, by name.

    - `weight_change` (methods.md 1): that of the trained tensors since the plan began, of which a copy is kept.
    - `gradient_sum` (AutoFreeze): the L1 norm of the sum of the gradients of all steps since it was last read, or the
      plan began. The sums take as much memory as the gradients.

    Both are 0 for a block without trained tensors.

    Args:
        model: what trains.
        names: the signals.
        shared: gives all processes that train together the values of one of them.

    Raises `ConfigError` for a signal that cannot be observed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], shared: Shared = tuple) -> None:
        self._model, self._names, self._shared = model, tuple(sorted(names)), shared
        for name in self._names:
            if name not in OBSERVABLE:
                raise unknown_name("signal to observe while training", name, OBSERVABLE)
        self._kept: dict[str, dict[str, Tensor]] = {}
        if CHANGE in self._names:
            self._kept[CHANGE] = {name: tensor.detach().clone() for name, tensor in self._trained().items()}
        if GRADIENTS in self._names:
            self._kept[GRADIENTS] = {name: torch.zeros_like(tensor) for name, tensor in self._trained().items()}

    def __getitem__(self, name: str) -> tuple[float, ...]:
        if name not in self._names:
            raise KeyError(name)
        with torch.no_grad():
            return self._shared(self._change() if name == CHANGE else self._gradients())

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
