"""The identity of an activation cache: everything that its states depend on besides the row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from frostline.anatomy import Anatomy, tensor_hash
from frostline.bottom._cut import CannotCut, Cut

# Entries of a config about its origin and the task head. They do not change what the bottom computes.
_NOT_COMPUTED_WITH = (
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
    """The tensors that the states at `cut` depend on: those of the embeddings and of the blocks below.

    Where an encoder-decoder is cut in its decoder, the norm at the end of the encoder is one of them.
    """
    tensors = [*anatomy.embeddings, *(t for block in anatomy.blocks[: cut.boundary] for t in block.tensors)]
    if len(cut.stacks) > 1:
        tensors += anatomy.final_norm
    return tuple(tensor.name for tensor in tensors)


def buffers_below(model: nn.Module, anatomy: Anatomy, cut: Cut) -> dict[str, str]:
    """Name -> hash of the buffers that the states at `cut` may depend on: all except those of the blocks above.

    They count because a checkpoint may hold some (the correction of a router, the scale of a layer), which the config
    does not show.
    """
    above = tuple(f"{block.name}." for block in anatomy.blocks[cut.boundary :])
    return {name: tensor_hash(buffer) for name, buffer in model.named_buffers() if not name.startswith(above)}


def hashes_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name -> hash of the named parameters as they are now.

    Raises `CannotCut` where one is quantized, or carries an adapter that an earlier plan trained.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    adapted = {name.replace("base_layer.", "") for name in known}
    for name in names:
        if name not in known or not known[name].is_floating_point():
            why = "carries an adapter of an earlier plan" if name in adapted - known.keys() else "is quantized"
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
    """Everything that the boundary states of `model` at `cut` depend on besides the row, as plain data.

    If two identities are equal, the states of a row are the same.

    Args:
        model: a transformers model.
        cut: where it is cut.
        hashes: name -> hash of the tensors and buffers below the boundary.
        inputs: the features that the bottom reads.
        autocast: the dtype of autocast; None without autocast.
        device: the type of device.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_COMPUTED_WITH}
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
    """The precision of float32 matrix products, on a GPU and on a CPU.

    Read from torch's backends, because `torch.get_float32_matmul_precision` fails after transformers has set `tf32`.
    """
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # torch before 2.9
        return [torch.get_float32_matmul_precision()]
    return [backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision]
