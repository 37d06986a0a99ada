"""How the matrices of a block follow one another: found from their sizes, roles and names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from frostline.anatomy import Anatomy, Attention, Block, Linear, Role, attentions, sides
from frostline.cost._families import Family, family


@dataclass(frozen=True)
class Norm:
    """One norm over `width` numbers of a token, in `groups` of equal size (heads); `side` is "q" or "k" when it
    norms queries or keys; `centres` tells a LayerNorm from an RMSNorm."""

    width: int
    groups: int
    side: str
    centres: bool


@dataclass(frozen=True)
class Structure:
    """A block's parts in the order in which a token passes them.

    `entering` are the feed-forward's matrices that multiply the block's hidden states (a router too),
    `leaving` those that lead back to them. `inner` is the width between, of all experts that a token passes
    together; `gated` if two products of that width are multiplied.
    """

    attentions: tuple[Attention, ...]
    entering: tuple[Linear, ...]
    leaving: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    inner: float
    gated: bool
    hidden: int
    family: Family

    @property
    def normed_first(self) -> bool:
        """Whether a norm comes before the first attention (ModernBERT's first block has none)."""
        return not self.family.post_norm and (self.family.parallel or self._norms_around > 1)

    @property
    def ends_in_norm(self) -> bool:
        """Whether a norm comes after the last matrix."""
        return self.family.post_norm or self._norms_around > 2

    @property
    def _norms_around(self) -> int:
        return sum(not norm.side and norm.width == self.hidden for norm in self.norms)


@lru_cache(maxsize=1024)
def structure(block: Block, model_type: str, hidden: int, encoder_decoder: bool) -> Structure:
    """The structure of one block."""
    kind = family(model_type)
    made = attentions(block, crossing=encoder_decoder and block.stack == "decoder")
    entering, leaving = _feed_forward(block, hidden)
    inner = sum(linear.copies * linear.active * linear.in_features for linear in leaving)
    entered = sum(linear.copies * linear.active * linear.out_features for linear in entering)
    return Structure(
        attentions=made,
        entering=entering,
        leaving=leaving,
        norms=tuple(_norms(block, made, kind)),
        inner=inner,
        gated=entered > 1.5 * inner,
        hidden=hidden,
        family=kind,
    )


def structures(anatomy: Anatomy) -> tuple[Structure, ...]:
    """The structure of every block."""
    return tuple(
        structure(block, anatomy.model_type, anatomy.hidden_size, anatomy.encoder_decoder) for block in anatomy.blocks
    )


def _feed_forward(block: Block, hidden: int) -> tuple[tuple[Linear, ...], tuple[Linear, ...]]:
    linears = [linear for linear in block.linears if linear.role is Role.FEED_FORWARD]
    leaving = [m for m in linears if m.out_features == hidden and m.in_features != hidden]
    if not leaving:  # a feed-forward as wide as the model: its last matrix leads back
        leaving = [m for m in linears if m.out_features == hidden][-1:]
    return tuple(m for m in linears if m not in leaving), tuple(leaving)


def _norms(block: Block, attentions: Sequence[Attention], kind: Family) -> Iterator[Norm]:
    tensors = [tensor for tensor in block.tensors if tensor.role is Role.NORM]
    biased = {tensor.name.rpartition(".")[0] for tensor in tensors if tensor.is_bias}
    for tensor in tensors:
        path = tensor.name.rpartition(".")[0]
        if tensor.is_bias:
            continue
        size = width = tensor.shape[0]
        found = re.fullmatch(r"([qk])\w*_(layer)?norm", path.rpartition(".")[2])
        # A latent's norm (q_a_layernorm) is as wide as its tensor, a head's is repeated for each head.
        side = found[1] if found and attentions and size != _latent(attentions[0], found[1]) else ""
        if side:
            width = attentions[0].q if side == "q" else attentions[0].k
        yield Norm(width, max(1, width // size), side, path in biased or kind.layer_norm)


def _latent(attention: Attention, side: str) -> int | None:
    """The width of the latent vector that a side's heads are made from, None when there is none."""
    made = [linear for linear in attention.inputs if side in sides(linear)]
    return made[-1].in_features if len(made) > 1 else None
