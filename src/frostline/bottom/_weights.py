"""The weights below the boundary leave memory while the blocks above train, and come back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frostline.bottom._standins import BlockStandIn, StandIns
from frostline.core.files import disk_errors
from frostline.core.memory import give_back_free_memory


def leave_memory(model: nn.Module, standins: StandIns, folder: Path) -> int:
    """Move the weights that stand-ins replace out of memory; the bytes that were freed.

    On an accelerator they go to the host. On a CPU they are written to a file in `folder` and mapped from it: the
    system keeps no page of them that nobody reads, and reads them back when they are used. The file has no name,
    so it vanishes with the process. Weights that the model still holds (a head tied to the embeddings, a block that
    keeps running) stay. Raises `FrostlineError` when the disk is full; nothing has left then.
    """
    leaving = _leaving(model, standins)
    away = [parameter for parameter in leaving if parameter.device.type == "cpu"]
    freed = sum(parameter.nbytes for parameter in leaving)
    with torch.no_grad():
        if away:
            for parameter, mapped in zip(away, _mapped([p.data for p in away], folder), strict=True):
                parameter.data = mapped
        for parameter in leaving:
            parameter.data = parameter.data.cpu()
    give_back_free_memory()
    return freed


def come_back(standins: StandIns, device: torch.device) -> None:
    """Put the weights that left back on `device`. Mapped ones are read as they are used."""
    for module in standins.originals:
        module.to(device)


def _leaving(model: nn.Module, standins: StandIns) -> list[nn.Parameter]:
    staying = set(model.parameters())
    for module in model.modules():
        if isinstance(module, BlockStandIn):
            staying |= {parameter for block in module.running for parameter in block.parameters()}
    found = dict.fromkeys(parameter for module in standins.originals for parameter in module.parameters())
    return [parameter for parameter in found if parameter not in staying and not parameter.is_meta]


def _mapped(tensors: Iterable[Tensor], folder: Path) -> list[Tensor]:
    named = {str(position): tensor.contiguous() for position, tensor in enumerate(tensors)}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bottom-", dir=folder) as place:
            path = Path(place) / "weights.safetensors"
            save_file(named, path)
            loaded = load_file(path)
    return [loaded[name] for name in named]
