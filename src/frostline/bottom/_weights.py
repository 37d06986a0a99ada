"""Take the weights below the boundary out of memory while the blocks above train, and bring them back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frostline.bottom._standins import StandIns
from frostline.core.cache import ABANDONED
from frostline.core.files import UNFINISHED, disk_errors, private, sweep
from frostline.core.memory import give_back_free_memory
from frostline.hooks import Override


class OffloadedWeights:
    """The weights of the replaced modules, which are out of memory from `offload` to `restore`.

    On an accelerator they move to the host. On a CPU they are written to a file in `folder` and mapped from it: the
    system frees pages that nobody reads, and reads them again when they are used. The file is deleted at once, so it
    disappears with the process. The modules stay in the model. On an accelerator `model.to(...)` does not move the
    offloaded weights; on a CPU it changes them like all others.

    Some weights stay in memory: those that the model still reads (a head tied to the embeddings, a block that has to
    run), and on an accelerator the model's first parameter, because transformers reads `model.device` from it.

    Args:
        model: whose weights are moved.
        standins: the stand-ins for its bottom.
        folder: for the file.
    """

    def __init__(self, model: nn.Module, standins: StandIns, folder: Path) -> None:
        self._parameters, self._modules, self._folder = only_in_bottom(model, standins), standins.modules, folder
        self._first = next(model.parameters())
        self._device: torch.device | None = None
        self._pinned: list[Override] = []
        self.offloaded = False

    def offload(self) -> int:
        """Take the weights out of memory and give the number of bytes freed.

        Raises `FrostlineError` when the disk is full; then all weights are still in memory.
        """
        if self.offloaded:
            return 0
        if self._parameters and self._parameters[0].device.type == "cpu":
            mapped = _mapped([parameter.data for parameter in self._parameters], self._folder)
        else:
            self._device = self._parameters[0].device if self._parameters else None
            self._parameters = [parameter for parameter in self._parameters if parameter is not self._first]
            mapped = [parameter.data.cpu() for parameter in self._parameters]
        for parameter, tensor in zip(self._parameters, mapped, strict=True):
            parameter.data = tensor
        self.offloaded = True
        if self._device is not None or not self._parameters:  # there are none where it is read block by block
            self._pinned = [Override(module, _stay(module), "_apply") for module in self._modules]
        give_back_free_memory(collect=False)
        return sum(parameter.nbytes for parameter in self._parameters)

    def restore(self) -> None:
        """Bring the weights back to their device. Mapped ones are read from the file when they are used."""
        for override in self._pinned:
            override.remove()
        self._pinned, self.offloaded = [], False
        if self._device is not None:
            for parameter in self._parameters:
                parameter.data = parameter.data.to(self._device)


def only_in_bottom(model: nn.Module, standins: StandIns) -> list[nn.Parameter]:
    """The parameters in memory that lie in replaced modules and that nothing else in `model` reads."""
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
        with private():
            folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, older_than=ABANDONED)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as place:
            path = Path(place) / "weights.safetensors"
            save_file(named, path)
            loaded = load_file(path)
    return [loaded[name] for name in named]
