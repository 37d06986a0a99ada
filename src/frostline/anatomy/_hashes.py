"""Hashes of a model's tensors. By them a delta knows its own base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_hashes(model: nn.Module) -> dict[str, str]:
    """Parameter name -> SHA-256 over its dtype, shape and bytes; tensors on the meta device are left out."""
    return {name: tensor_hash(parameter) for name, parameter in model.named_parameters() if not parameter.is_meta}


def fingerprint(hashes: Mapping[str, str]) -> str:
    """One hash over the names and hashes of all of a model's tensors."""
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()
