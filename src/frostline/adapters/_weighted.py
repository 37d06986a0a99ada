"""A sum of LoRA adapters as a new adapter.

r rank, in and out the matrix's widths; A [r, in], B [out, r], the update is scale B A
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from frostline.adapters._kinds import kind_of
from frostline.adapters._lora import LoraKind, LowRank
from frostline.anatomy import Anatomy, Block
from frostline.core.errors import AdapterError
from frostline.plan import BlockMode, Frozen, Lora

Combination = Literal["svd", "cat", "linear"]


def combined_modes(
    given: Sequence[Sequence[BlockMode]], anatomy: Anatomy, how: str, svd_rank: int | None
) -> tuple[BlockMode, ...]:
    """The modes of the sum: LoRA on every matrix that one of the adapters has LoRA on, with a scale of 1.

    Args:
        given: the modes of each adapter.
        anatomy: of the model.
        how: a `Combination`.
        svd_rank: the rank with `svd`; None for the largest.

    Raises `AdapterError` for another combination, for a mode that is not LoRA without a gate, and with `linear` for
    ranks that differ.
    """
    if how not in get_args(Combination):
        raise AdapterError(f"Invalid combination_type: {how}: use one of {', '.join(get_args(Combination))}")
    blocks = zip(anatomy.blocks, zip(*given, strict=True), strict=True)
    return tuple(_of_block(block, modes, anatomy, how, svd_rank) for block, modes in blocks)


def _of_block(block: Block, modes: Sequence[BlockMode], anatomy: Anatomy, how: str, svd_rank: int | None) -> BlockMode:
    kinds = [kind for kind in map(kind_of, modes) if kind is not None]
    loras = [kind for kind in kinds if isinstance(kind, LoraKind) and not kind.mode.gate]
    if len(loras) < len(kinds):
        raise AdapterError(f"add_weighted_adapter: block {block.index} has more than LoRA: use adapters of LoRA only")
    if not loras:
        return Frozen()
    ranks = [kind.mode.r for kind in loras]
    if how == "linear" and len(set(ranks)) > 1:
        raise AdapterError(
            f"All adapters must have the same r value when using combination_type linear, and block {block.index} has "
            f"{', '.join(map(str, ranks))}: use cat or svd"
        )
    rank = sum(ranks) if how == "cat" else (svd_rank or max(ranks)) if how == "svd" else ranks[0]
    names = dict.fromkeys(linear.name for kind in loras for linear in kind.linears(block, anatomy))
    return Lora(r=rank, alpha=rank, dropout=loras[0].mode.dropout, targets=tuple(names))


def combine(parts: nn.ModuleDict, weights: Mapping[str, float], adapter_name: str, how: str) -> None:
    """Set the values of an adapter's part, a LoRA of scale 1, to the sum of others times their weights.

    Args:
        parts: adapter -> its part, around one matrix.
        weights: adapter -> its weight. Adapters without a part here are left out.
        adapter_name: whose part is set; without one, nothing happens.
        how: a `Combination`.
    """
    loras = {name: part for name, part in parts.items() if isinstance(part, LowRank)}
    part = loras.get(adapter_name)
    if part is None:
        return
    there = {name: weight for name, weight in weights.items() if name in loras}
    given = [(loras[name].A, loras[name].B, weight * loras[name].scale) for name, weight in there.items()]
    with torch.no_grad():
        low, high = _sum(given, how, len(part.A))
        part.A.zero_()[: len(low)] = low
        part.B.zero_()[:, : high.shape[1]] = high


def _sum(given: Sequence[tuple[Tensor, Tensor, float]], how: str, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of the sum of s B A, for each (A, B, s)."""
    if how == "cat":
        return torch.cat([scale * a for a, _, scale in given]), torch.cat([b for _, b, _ in given], dim=1)
    if how == "linear":  # the root of s on both sides, its sign on one
        roots = [math.sqrt(abs(scale)) for *_, scale in given]
        low = [math.copysign(root, scale) * a for root, (a, _, scale) in zip(roots, given, strict=True)]
        high = [root * b for root, (_, b, _) in zip(roots, given, strict=True)]
        return torch.stack(low).sum(0), torch.stack(high).sum(0)
    left, values, right = torch.linalg.svd(
        sum(scale * (b.float() @ a.float()) for a, b, scale in given), full_matrices=False
    )
    return right[:rank], left[:, :rank] * values[:rank]
