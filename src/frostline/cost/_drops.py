"""What is expected of a step in which blocks or adapters are left out at random (LayerDrop, AdapterDrop).

A block that may be skipped runs with probability 1 - p. Where every block of its stack that trains may be skipped, a
pass that would skip all n of them is drawn again, which makes it (1 - p) / (1 - p^n). Blocks are taken to be alike in
what a skipped one spares the others: that no gradient enters the block above it, if it is the lowest that trains, is
left out. So are the optimizer's steps that it spares. Memory is that of a pass in which everything runs.
"""

from __future__ import annotations

from frostline.anatomy import Anatomy, adapted, skippable, stacks
from frostline.plan import AdapterDrop, Frozen, Plan


def running(plan: Plan, anatomy: Anatomy) -> list[float]:
    """The probability with which each block runs in a pass of the training."""
    shares, p = [1.0] * len(plan.blocks), plan.forward.layerdrop.p
    for stack, able in zip(stacks(anatomy), skippable(plan, anatomy), strict=True):
        training = sum(plan.blocks[block.index].mode != "frozen" for block in stack)
        again = p ** len(able) if len(able) == training else 0.0
        for index in able:
            shares[index] = (1 - p) / (1 - again)
    return shares


def drawn_plans(plan: Plan) -> list[Plan]:
    """The plans that passes of the training follow, all equally likely: those without the lowest 0, 1, ... adapters."""
    if not plan.forward.adapterdrop.robust:
        return [plan]
    forward = plan.forward.model_copy(update={"adapterdrop": AdapterDrop()})
    places, drawn = adapted(plan), []
    for count in range(len(places)):
        blocks = tuple(Frozen() if i in places[:count] else mode for i, mode in enumerate(plan.blocks))
        drawn.append(plan.model_copy(update={"blocks": blocks, "forward": forward}))
    return drawn
