"""What an adapter's config knows of its base model, and the check when it is put on another one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from frostline.anatomy import Anatomy
from frostline.core.errors import AdapterError

_VALUES = 16
"""How many values of each tensor the fingerprint reads. All would cost a second per gigabyte at every loading."""


def describe_base(model: nn.Module, anatomy: Anatomy) -> dict[str, Any]:
    """Type, depth and width of a model without adapters, and a fingerprint of the values in its blocks.

    Embeddings and heads are left out of the fingerprint: new tokens and new heads are drawn at random at each loading.
    """
    tensors = dict(model.named_parameters())
    blocks = {tensor.name: tensors[tensor.name] for block in anatomy.blocks for tensor in block.tensors}
    return {
        "model_type": anatomy.model_type,
        "blocks": len(anatomy.blocks),
        "hidden_size": anatomy.hidden_size,
        "fingerprint": _fingerprint(blocks),
    }


def check_base(known: Mapping[str, Any] | None, found: Mapping[str, Any]) -> None:
    """Warn when the base has other values than the one that the adapter was made for.

    Args:
        known: the config's `base`; None where it has none.
        found: the same of the model at hand.

    Raises `AdapterError` when the base has another type, depth or width.
    """
    if known is None:
        return
    if not isinstance(known, Mapping):
        raise AdapterError(f"HybridConfig: base: {known!r:.60} is not a table: use the adapter_config.json as saved")
    names = ("model_type", "blocks", "hidden_size")
    if any(known.get(name, found[name]) != found[name] for name in names):
        raise AdapterError(
            f"HybridConfig: the adapter was made for {_sizes(known)}, and this model is {_sizes(found)}: "
            "use the adapter's own base model"
        )
    if _dtype(known) == _dtype(found) and known.get("fingerprint") != found["fingerprint"]:
        warnings.warn(
            "HybridConfig: the adapter was made for a base of the same type and sizes, but with other weights: its "
            "outputs are not those of its training. Use its own base model if this is not a fine-tuned copy of it.",
            stacklevel=2,
        )


def _sizes(base: Mapping[str, Any]) -> str:
    return f"{base.get('model_type')} with {base.get('blocks')} blocks of width {base.get('hidden_size')}"


def _dtype(base: Mapping[str, Any]) -> str | None:
    """The dtype before the fingerprint's hash. In another dtype the same weights have other bytes."""
    return str(base.get("fingerprint")).partition(":")[0]


def _fingerprint(tensors: Mapping[str, nn.Parameter]) -> str | None:
    """`dtype:hash` over some values of each tensor; None where they cannot be read, or are quantized."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if any(tensor.is_meta or type(tensor) is not nn.Parameter for tensor in tensors.values()):
        return None
    if not all(dtype.is_floating_point and dtype.itemsize > 1 for dtype in dtypes):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        places = torch.linspace(0, max(0, tensor.numel() - 1), min(_VALUES, tensor.numel()), dtype=torch.float64).long()
        values = tensor.detach().reshape(-1)[places.to(tensor.device)].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + values.numpy().tobytes())
    return f"{'+'.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}:{digest.hexdigest()[:32]}"
