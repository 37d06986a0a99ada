"""How many parameters a plan adds: exact, from the sizes of the blocks alone."""

from __future__ import annotations

from frostline.adapters._mixture import beside_attention, feed_forward
from frostline.adapters._peft_places import peft_parameters
from frostline.adapters._targets import LoraTarget, lora_parameters, matrices, prefix_widths
from frostline.anatomy import Anatomy, Block
from frostline.plan import BlockMode, Bottleneck, Lora, Mixture, Peft, Plan, Prefix


def added_parameters(plan: Plan, anatomy: Anatomy) -> tuple[int, ...]:
    """Of each block, the trainable parameters that its mode adds.

    Raises `UserError` when a mode does not fit its block.
    """
    return tuple(added_to(mode, block, anatomy) for mode, block in zip(plan.blocks, anatomy.blocks, strict=True))


def added_to(mode: BlockMode, block: Block, anatomy: Anatomy) -> int:
    """What one mode adds to one block: LoRA r (in + out), and in + 1 for a gate; a prefix of l tokens l (k + v), and
    d + 1 for a gate; an adapter of bottleneck b b (reads + out), and b + out for biases; a mixture of N experts N d for
    its router and N r (in + out) for each matrix of the feed-forward, and LoRA on the attention's."""
    if isinstance(mode, Lora):
        return sum(lora_parameters(LoraTarget(linear, mode)) for linear in matrices(mode, block, anatomy.model_type))
    if isinstance(mode, Prefix) and mode.length:
        gate = 0 if mode.gate == "none" else anatomy.hidden_size + 1
        return mode.length * sum(prefix_widths(block)) + gate
    if isinstance(mode, Bottleneck):
        total = 0
        for linear in matrices(mode, block, anatomy.model_type):
            reads = linear.in_features if mode.kind == "parallel" else linear.out_features
            total += mode.bottleneck * (reads + linear.out_features)
            total += mode.bias * (mode.bottleneck + linear.out_features)
        return total
    if isinstance(mode, Peft):
        return peft_parameters(mode, block, anatomy.model_type)
    if isinstance(mode, Mixture):
        _, linears = feed_forward(block)
        within = sum(mode.r * (linear.in_features + linear.out_features) for linear in linears)
        attention = added_to(beside_attention(mode), block, anatomy) if mode.attention else 0
        return mode.experts * (anatomy.hidden_size + within) + attention
    return 0
