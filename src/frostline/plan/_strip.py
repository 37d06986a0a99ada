"""A plan as a strip of coloured cells, one for each block, for the terminal."""

from __future__ import annotations

from rich.text import Text

from frostline.plan._plan import Plan

CELLS = {
    "frozen": ("░", "bright_blue"),
    "partial": ("▒", "yellow"),
    "lora": ("▞", "magenta"),
    "prefix": ("▚", "cyan"),
    "adapter": ("▙", "green"),
    "full": ("█", "red"),
}


def strip(plan: Plan) -> Text:
    """Embeddings, blocks from the input, final norm and head: ``emb ░ ░░░░████ norm █ head █``."""
    text = Text("emb ")
    _cell(text, plan.embeddings.mode)
    text.append(" ")
    for block in plan.blocks:
        _cell(text, block.mode)
    for name, part in (("norm", plan.final_norm), ("head", plan.head)):
        text.append(f" {name} ")
        _cell(text, part.mode)
    used = dict.fromkeys(part.mode for part in (plan.embeddings, *plan.blocks, plan.final_norm, plan.head))
    text.append("   ")
    for mode in used:
        _cell(text, mode)
        text.append(f" {mode} ")
    text.rstrip()
    return text


def _cell(text: Text, mode: str) -> None:
    symbol, colour = CELLS[mode]
    text.append(symbol, style=colour)
