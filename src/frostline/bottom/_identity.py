"""What stored states depend on besides the example: the identity of an activation cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from frostline.anatomy import Anatomy, tensor_hash
from frostline.bottom._cut import CannotCut, Cut

# What a config says of where it came from and of the head, but not of what the bottom computes.
_BESIDE = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "use_cache",
    "dtype",
)


def names_below(anatomy: Anatomy, cut: Cut) -> tuple[str, ...]:
    """The tensors that the states at `cut` depend on: the embeddings', those of the blocks below, and in an
    encoder-decoder cut in its decoder the norm at the encoder's end."""
    tensors = [*anatomy.embeddings, *(t for block in anatomy.blocks[: cut.boundary] for t in block.tensors)]
    if len(cut.stacks) > 1:
        tensors += anatomy.final_norm
    return tuple(tensor.name for tensor in tensors)


def buffers_below(model: nn.Module, anatomy: Anatomy, cut: Cut) -> dict[str, str]:
    """Name -> hash of the buffers that the states at `cut` may depend on: all but those of the blocks above.

    A checkpoint may hold some of them (a router's correction, a layer's scale), so the config does not say them.
    """
    above = tuple(f"{block.name}." for block in anatomy.blocks[cut.boundary :])
    return {name: tensor_hash(buffer) for name, buffer in model.named_buffers() if not name.startswith(above)}


def hashes_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name -> hash of the named parameters as they are now.

    Raises `CannotCut` where one is held rounded, or stands beside an adapter that an earlier plan trained.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    adapted = {name.replace("base_layer.", "") for name in known}
    for name in names:
        if name not in known or not known[name].is_floating_point():
            why = "carries an adapter of an earlier plan" if name in adapted - known.keys() else "is held in fewer bits"
            raise CannotCut(f"{name} {why}, and such blocks stay in memory")
    return {name: tensor_hash(known[name]) for name in names}


def identity(
    model: Any,
    cut: Cut,
    hashes: Mapping[str, str],
    *,
    inputs: Sequence[str],
    autocast: torch.dtype | None,
    device: str,
) -> dict[str, Any]:
    """Everything but the example that the boundary states of `model` at `cut` depend on, as plain data.

    `hashes` are those of the tensors below, `inputs` the features that the forward takes, `autocast` its dtype
    (None: none), `device` the type of device. Two identities are equal when the states are.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _BESIDE}
    digest = hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode())
    return {
        "boundary": cut.boundary,
        "weights": digest.hexdigest(),
        "trunk": type(model.base_model).__name__,
        "config": config,
        "attention": str(model.config._attn_implementation),
        "experts": getattr(model.config, "_experts_implementation", None),
        "inputs": sorted(inputs),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
        "device": device,
        "float32_products": _float32_products(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _float32_products() -> list[str]:
    """How exactly float32 matrices are multiplied, on a GPU and on a CPU.

    `torch.get_float32_matmul_precision` fails where transformers' `tf32` was given.
    """
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # torch before 2.9
        return [torch.get_float32_matmul_precision()]
    return [backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision]
