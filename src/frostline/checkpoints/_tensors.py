"""Read tensors from a file that frostline wrote, with an error message that names the file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from frostline.core.errors import CheckpointError


def read_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors in the safetensors file `path`, by name; error messages call the file `what`.

    Raises `CheckpointError` when the file is missing or damaged.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{what} cannot be read: {path}: {error}") from None
