"""Read tensors from a file of frostline's own, with an error a user can act on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from frostline.core.errors import CheckpointError


def read_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors in the safetensors file `path`, by name. Raises `UserError` when it is missing or torn."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{what} cannot be read: {path}: {error}") from None
