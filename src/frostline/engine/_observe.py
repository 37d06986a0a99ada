"""The signals that a schedule observes while the model trains. They are measured when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.checkpoints import read_tensors
from frostline.core.errors import unknown_name
from frostline.signals import weight_change
from frostline.surgery import applied_to

OBSERVED_FILE = "observed.safetensors"
OBSERVABLE = ("weight_change",)


class Observer(Mapping[str, Sequence[float]]):
    """Signals of every block since the start of the current plan, by name.

    `weight_change` (methods.md 1) is that of the trained tensors, of which a copy is kept. It is 0 for a block without
    trained tensors. Raises `ConfigError` for a signal that cannot be observed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._model, self._names = model, tuple(sorted(names))
        for name in self._names:
            if name not in OBSERVABLE:
                raise unknown_name("signal to observe while training", name, OBSERVABLE)
        self._before = {name: tensor.detach().clone() for name, tensor in self._trained().items()}

    def __getitem__(self, name: str) -> tuple[float, ...]:
        if name not in self._names:
            raise KeyError(name)
        applied = applied_to(self._model)
        assert applied is not None
        with torch.no_grad():
            return weight_change(self._before, self._trained(), applied.anatomy)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def save(self, folder: Path) -> None:
        """Save the values at the start of the plan, if any signal is observed."""
        if self._names:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in self._before.items()}, folder / OBSERVED_FILE
            )

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        if self._names:
            saved = read_tensors(folder / OBSERVED_FILE, "the values that the schedule compares with")
            self._before = {name: saved[name].to(tensor.device) for name, tensor in self._before.items()}

    def _trained(self) -> dict[str, Tensor]:
        applied = applied_to(self._model)
        if not self._names or applied is None:
            return {}
        places = tuple(f"{block.name}." for block in applied.anatomy.blocks)
        named = self._model.named_parameters()
        return {name: tensor for name, tensor in named if name in applied.lr_scales and name.startswith(places)}
