"""What keeps a plan from becoming a LoRA folder, which holds nothing but LoRA."""

from __future__ import annotations

from frostline.adapters import kind_of
from frostline.core.errors import PlanError
from frostline.plan import BlockMode, Plan

ONLY = "and a LoRA folder holds nothing but LoRA without a gate"


def check_lora_only(plan: Plan, where: str) -> None:
    """Raises `PlanError` when a plan trains what a LoRA folder cannot hold."""
    if (reason := plan.forward.why_not_plain) is not None:
        raise PlanError(f"{where}: {reason}, which LoRA cannot do: use frostline.load")
    check_lora_blocks(plan.blocks, where, "frostline merge", "frostline.load")
    for part in ("embeddings", "final_norm", "head"):
        if getattr(plan, part).mode != "frozen":
            raise PlanError(
                f"{where}: {part} trains, {ONLY} (vLLM and llama.cpp read no more): use frostline merge, or a plan in "
                "which it is frozen"
            )


def check_lora_blocks(modes: tuple[BlockMode, ...], where: str, merge: str, load: str) -> None:
    """Raises `PlanError`, which names the way that is open, when a block has anything but LoRA without a gate."""
    added = [kind_of(mode) for mode in modes]
    merges = all(kind is None or kind.merges for kind in added)
    way = merge if merges else f"{load} (what depends on the input cannot be merged either)"
    for index, (mode, kind) in enumerate(zip(modes, added, strict=True)):
        if mode.own is not None or (kind is not None and kind.lora_scale is None):
            what = f"{getattr(mode, 'label', mode.mode)}{' with a gate' if mode.mode == 'lora' else ''}"
            raise PlanError(f"{where}: block {index} has {what}, {ONLY}: use {way}")
