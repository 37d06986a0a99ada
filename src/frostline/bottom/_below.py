"""What a user put below the boundary, and what acts there: hooks, dropout, adapters."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.bottom._cut import Cut
from frostline.hooks import drops_by, foreign_hook
from frostline.plan import Plan


def hook_below(model: nn.Module, cut: Cut) -> str | None:
    """Say in one line that a user's hook is on a module below the boundary, where it would not run; None if none is."""
    found = foreign_hook(modules_below(model, cut))
    return None if found is None else f"a forward hook is on {found}, below the boundary, where it would not run"


def acts_below(model: nn.Module, cut: Cut, plan: Plan) -> str | None:
    """Say in one line what makes the frozen bottom something else than its weights say; None where nothing does.

    Args:
        model: the model itself.
        cut: where its bottom ends.
        plan: with `frozen_dropout`, dropout acts below the boundary too.
    """
    below = list(modules_below(model, cut))
    for name, module in below:
        if any(kind.__module__.startswith("peft.") for kind in type(module).__mro__):
            return f"an adapter is on {name}, below the boundary, and may be switched or merged at any time"
    if not plan.frozen_dropout:
        return None
    around = ((name, module) for name, module in model.named_modules() if _holds(name, cut))
    for name, module in (*below, *around):
        if (draws := drops_by(module)) is not None:
            where = f"{name}.{draws}".strip(".")
            what = f"dropout acts below the boundary ({where}), so every pass differs"
            return f"{what}: set it to 0, or freeze by a plan without frozen_dropout"
    return None


def modules_below(model: nn.Module, cut: Cut) -> Iterator[tuple[str, nn.Module]]:
    """The blocks below the boundary, the embeddings before them, and all modules inside, by name."""
    below = tuple(name for stack in cut.stacks for name in (*stack.blocks, *stack.embeddings))
    inside = tuple(f"{name}." for name in below)
    for name, module in model.named_modules():
        if name in below or name.startswith(inside):
            yield name, module


def _holds(name: str, cut: Cut) -> bool:
    """Whether a module holds blocks of the bottom. It may skip some of them at random (`layerdrop`)."""
    return any(block.startswith(f"{name}.") for stack in cut.stacks for block in stack.blocks)
