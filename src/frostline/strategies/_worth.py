"""What training is worth: the rule with which plans are compared before any of them is tried.

    gain = (1 + c) / (1 + c share^-1.5)  x  worth of the mode  x  (1 - e^(-p / 0.9)) / (1 - e^(-3.3 / 0.9))

`share` is the part of the blocks that trains, `p` the passes over the rows that the time allows, of which at most 3.3
are made. Full fine-tuning with 3.3 passes gains 1. Two models were measured for it (docs/LOG.md, "Simple plans in the
same processor time"), so it is a first choice and no forecast: docs/decisions/0023-auto-tries.md has its error.
"""

from __future__ import annotations

import math

from frostline.anatomy import Anatomy

PASSES = 3.3
"""More passes over the rows made every measured plan worse."""
TAU = 0.9
"""After so many passes 0.63 of what a plan can learn is learned."""
LOST_PRETRAINED, LOST_NEW = 0.003, 0.15
"""c: what is lost where few blocks train. A new head is far from its task, so that more blocks have to change."""
LORA_WORTH = 0.75
"""The gain of LoRA on all matrices of a block, as a share of the gain of training the block in full.

It learns a little more than that in as many passes; but its steps take longer than their operations say."""
TIED_WORTH = 0.9
"""The gain of a head that is tied to frozen embeddings, as a share of that of one with its own weights."""
RATE_PRETRAINED, RATE_NEW = 2.3e-3, 2.8e-4
"""The learning rate of a model of width 256."""
RATE_STEP = 3.0
"""The best of the measured rates is within this factor of the rule's."""


def learned(passes: float) -> float:
    """What `passes` over the rows teach, as a share of what `PASSES` do."""
    return (1 - math.exp(-min(passes, PASSES) / TAU)) / (1 - math.exp(-PASSES / TAU))


def of_share(share: float, pretrained: bool) -> float:
    """The gain of training a share of the blocks, for a model with a pretrained or a new head."""
    lost = LOST_PRETRAINED if pretrained else LOST_NEW
    return float((1 + lost) / (1 + lost * share**-1.5))


def learning_rate(anatomy: Anatomy) -> float:
    """The learning rate to begin with: it falls with the width of the model, to the power of 1.5 [inferred].

    It goes through the best rates of the two measured models, and comes to 3.6e-5 for a language model of width 4096.
    Below the width of 256 it stays the same.
    """
    base = RATE_PRETRAINED if anatomy.has_lm_head else RATE_NEW
    return float(f"{base * min(1.0, 256 / anatomy.hidden_size) ** 1.5:.2g}")
