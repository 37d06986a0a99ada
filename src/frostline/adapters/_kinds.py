"""The table of adapter kinds, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from frostline.adapters._added import Added
from frostline.adapters._bottleneck import BottleneckKind
from frostline.adapters._kind import AdapterKind
from frostline.adapters._lora import LoraKind
from frostline.adapters._mixture import MixtureKind
from frostline.adapters._peft import PeftKind
from frostline.adapters._prefix import PrefixKind
from frostline.adapters._unipelt import UnipeltKind
from frostline.anatomy import Anatomy, Block
from frostline.plan import Adding, BlockMode, Bottleneck, Lora, Mixture, Mode, Peft, Plan, Prefix, Unipelt

KINDS: Mapping[type[Mode], type[AdapterKind[Any]]] = {
    Lora: LoraKind,
    Prefix: PrefixKind,
    Bottleneck: BottleneckKind,
    Mixture: MixtureKind,
    Peft: PeftKind,
    Unipelt: UnipeltKind,
}


def kind_of(mode: BlockMode) -> AdapterKind[Adding] | None:
    """The adapter kind of a block's mode, with the mode's options. None for a mode that adds nothing."""
    return KINDS[type(mode)](mode) if mode.adds else None


def adapters_in(modes: Iterable[BlockMode], anatomy: Anatomy) -> list[tuple[AdapterKind[Adding], Block]]:
    """(Adapter kind, block) for each block whose mode adds something, in order."""
    found = ((kind_of(mode), block) for mode, block in zip(modes, anatomy.blocks, strict=True))
    return [(kind, block) for kind, block in found if kind is not None]


def added_to(mode: BlockMode, block: Block, anatomy: Anatomy) -> Added:
    """What a mode adds to a block, as sizes. Raises `PlanError` or `UnsupportedModel` when it does not fit."""
    kind = kind_of(mode)
    return Added() if kind is None else kind.added(block, anatomy)


def added_parameters(plan: Plan, anatomy: Anatomy) -> tuple[int, ...]:
    """How many trainable parameters each block's mode adds. Exact; needs the blocks' sizes only, no weights.

    Raises `PlanError` or `UnsupportedModel` when a mode does not fit its block.
    """
    blocks = zip(plan.blocks, anatomy.blocks, strict=True)
    return tuple(added_to(mode, block, anatomy).parameters for mode, block in blocks)
