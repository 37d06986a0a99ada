"""The weights below the boundary leave memory while the blocks above train, and come back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frostline.bottom._standins import StandIns
from frostline.core.files import disk_errors
from frostline.core.memory import give_back_free_memory
from frostline.hooks import Override


class AwayWeights:
    """The weights that stand-ins cover, out of memory from `leave` to `come_back`.

    On an accelerator they go to the host. On a CPU they are written to a file in `folder` and mapped from it: the
    system keeps no page of them that nobody reads, and reads them back when they are used. The file has no name, so
    it vanishes with the process. Weights that the model still reads (a head tied to the embeddings, a block that keeps
    running) stay, and on an accelerator the model's first parameter, by which `model.device` is told. The modules keep
    their place, and `model.to(...)` leaves them where they are.
    """

    def __init__(self, model: nn.Module, standins: StandIns, folder: Path) -> None:
        self._leaving, self._modules, self._folder = covered_only(model, standins), standins.modules, folder
        self._first = next(model.parameters())
        self._device: torch.device | None = None
        self._pinned: list[Override] = []

    @property
    def away(self) -> bool:
        return bool(self._pinned)

    def leave(self) -> int:
        """Move the weights out; the bytes that were freed. Raises `FrostlineError` when the disk is full: nothing has
        left then."""
        if self.away:
            return 0
        if self._leaving and self._leaving[0].device.type == "cpu":
            mapped = _mapped([parameter.data for parameter in self._leaving], self._folder)
        else:
            self._device = self._leaving[0].device if self._leaving else None
            self._leaving = [parameter for parameter in self._leaving if parameter is not self._first]
            mapped = [parameter.data.cpu() for parameter in self._leaving]
        for parameter, tensor in zip(self._leaving, mapped, strict=True):
            parameter.data = tensor
        self._pinned = [Override(module, _stay(module), "_apply") for module in self._modules]
        give_back_free_memory()
        return sum(parameter.nbytes for parameter in self._leaving)

    def come_back(self) -> None:
        """Put the weights back where they were. Mapped ones are read as they are used."""
        for override in self._pinned:
            override.remove()
        self._pinned = []
        if self._device is not None:
            for parameter in self._leaving:
                parameter.data = parameter.data.to(self._device)


def covered_only(model: nn.Module, standins: StandIns) -> list[nn.Parameter]:
    """The parameters in memory that lie in covered modules, and that nothing else of `model` reads."""
    covered = {inner for module in standins.modules for inner in module.modules()}
    covered -= {inner for module in standins.running for inner in module.modules()}
    staying = {p for module in model.modules() if module not in covered for p in module._parameters.values()}
    found = dict.fromkeys(p for m in model.modules() if m in covered for p in m._parameters.values() if p is not None)
    return [parameter for parameter in found if parameter not in staying and not parameter.is_meta]


def _stay(module: nn.Module) -> Any:
    return lambda fn, recurse=True: module


def _mapped(tensors: Iterable[Tensor], folder: Path) -> list[Tensor]:
    named = {str(position): tensor.contiguous() for position, tensor in enumerate(tensors)}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bottom-", dir=folder) as place:
            path = Path(place) / "weights.safetensors"
            save_file(named, path)
            loaded = load_file(path)
    return [loaded[name] for name in named]
