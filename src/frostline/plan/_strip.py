"""A plan as a strip of coloured cells, one for each block, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def strip_over_time(plans: Sequence[tuple[int, Plan]], steps: int, width: int = 60) -> tuple[str, ...]:
    """What trains when: a line for each part from the head down, and in it a cell for each `steps` / `width` steps.

    Args:
        plans: each with its first step, from step 0 on.
        steps: of the training.
        width: cells of a line at most.
    """
    width = max(1, min(width, steps))
    shown = [[plan for step, plan in plans if step <= column * steps // width][-1] for column in range(width)]

    def line(name: str, modes: Iterable[str]) -> str:
        return f"{name:<5}{''.join(CELLS[mode][0] for mode in modes)}"

    blocks = range(len(plans[0][1].blocks))
    return (
        line("head", (plan.head.mode for plan in shown)),
        line("norm", (plan.final_norm.mode for plan in shown)),
        *(line(str(index), (plan.blocks[index].mode for plan in shown)) for index in reversed(blocks)),
        line("emb", (plan.embeddings.mode for plan in shown)),
    )


def _cell(text: Text, mode: str) -> None:
    symbol, colour = CELLS[mode]
    text.append(symbol, style=colour)
