"""LoRA as every tool reads it: one rank and one scale for all matrices.

vLLM and llama.cpp read one rank and one alpha from the config of a LoRA folder. Where matrices differ, ranks are padded
with zeros, and scales go into B.

in and out a matrix's widths, r its rank, R the largest rank
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from frostline.adapters._kinds import adapters_in
from frostline.anatomy import Anatomy
from frostline.core.errors import CheckpointError
from frostline.plan import BlockMode


class Update(NamedTuple):
    """What LoRA adds to a matrix: scale B A, with A [r, in] and B [out, r]."""

    A: Tensor
    B: Tensor
    scale: float


class OneRank(NamedTuple):
    """LoRA on several matrices: alpha / r times B A for each."""

    r: int
    alpha: float
    tensors: dict[str, Tensor]


def lora_updates(
    modes: Iterable[BlockMode], anatomy: Anatomy, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Update]:
    """What LoRA has learned, by the path of the matrix. A matrix that `tensors` lacks has not trained.

    Args:
        modes: one for each block: frozen, or LoRA without a gate.
        anatomy: of the model.
        tensors: A and B of the matrices: `PATH.lora_A.weight` and `PATH.lora_B.weight`.
        where: `tensors` come from, for messages.

    Raises `CheckpointError` when the shapes are not those of the modes.
    """
    found: dict[str, Update] = {}
    for kind, block in adapters_in(modes, anatomy):
        scale = kind.lora_scale
        for path, branch in kind.added(block, anatomy).branches.items():
            names = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
            if scale is None or not tensors.keys() & set(names):
                continue
            pair = [tensors.get(name) for name in names]
            if [None if tensor is None else tuple(tensor.shape) for tensor in pair] != list(branch.shapes):
                raise CheckpointError(
                    f"{where}: the LoRA of {path} does not have the shapes of its plan: it is damaged"
                )
            found[path] = Update(tensors[names[0]], tensors[names[1]], scale)
    return found


def of_one_rank(found: Mapping[str, Update]) -> OneRank:
    """The same updates with one rank and one scale, by PEFT's names. Exact where the scales do not differ."""
    r = max(len(update.A) for update in found.values())
    scales = {update.scale for update in found.values()}
    common = scales.pop() if len(scales) == 1 else 1.0
    alpha = common * r
    tensors = {}
    for path, (a, b, scale) in found.items():
        missing = r - len(a)
        tensors[f"{path}.lora_A.weight"] = functional.pad(a.float(), (0, 0, 0, missing)).cpu().contiguous()
        factor = 1.0 if scale == common else scale * r / alpha
        tensors[f"{path}.lora_B.weight"] = (functional.pad(b.float(), (0, missing)) * factor).cpu().contiguous()
    return OneRank(r, alpha, tensors)
