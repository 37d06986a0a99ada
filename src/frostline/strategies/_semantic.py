"""Semantic-aware freezing (methods.md 3): freeze up to the block whose output comes closest to the label; ablations."""

from __future__ import annotations

import random
from statistics import fmean
from typing import Literal

from pydantic import PositiveInt

from frostline.core.errors import PlanError
from frostline.core.seeding import derive_seed
from frostline.core.settings import Options
from frostline.signals import Form, Probe
from frostline.strategies._candidates import Freedom
from frostline.strategies._planner import planned
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation


class Deviation(Options):
    """How the deviation (how far the hidden states are from the label) and the gain of each block are measured.

    Attributes:
        deviation: `vds` (angle between the state and the label's semantic basis) or `shift` (length of a block's
            change of the state); None uses `vds` where the model has it, else `shift`.
        gain: the `difference` of the deviation from block to block, or the `log` of its ratio.
        rows: on how many rows of the task they are measured.
    """

    deviation: Literal["vds", "shift"] | None = None
    gain: Form = "difference"
    rows: PositiveInt = 256


class SemanticOptions(Deviation):
    """The options of `semantic`.

    Attributes:
        most_blocks: train at most this many blocks (the paper's budget B); None sets no limit.
    """

    most_blocks: PositiveInt | None = None


class ThresholdOptions(Deviation):
    """The options of `semantic-threshold`.

    Attributes:
        threshold: a block with at least this gain trains; None uses the mean of the gains.
    """

    threshold: float | None = None


def semantic(situation: Situation, options: SemanticOptions) -> Selection:
    """Freeze the blocks up to the one with the largest gain, and train all blocks above it.

    With a budget, the planner chooses what of them the budget allows.
    """
    count = _cut(situation, _probe(situation, options), options)
    if situation.budget.limits:
        worths = [float(index >= count) for index in range(situation.blocks)]
        return planned(situation, worths, Freedom(modes=("full",)), "semantic")
    return fixed(freeze_blocks(situation, set(range(count)), "semantic"))


def over_threshold(situation: Situation, options: ThresholdOptions) -> Selection:
    """Train the blocks whose gain reaches the threshold, wherever they are: at least one block, and never all.

    A block without a gain, because no block comes before it, is frozen.
    """
    gains = [gain.value for gain in _probe(situation, options).gains(options.gain, options.deviation)]
    ranked = sorted((gain, block) for block, gain in enumerate(gains) if gain is not None)
    if not ranked:
        raise PlanError("strategy 'semantic-threshold': no block has a gain: use deviation: vds, or another strategy")
    threshold = fmean(gain for gain, _ in ranked) if options.threshold is None else options.threshold
    trained = {block for gain, block in ranked if gain >= threshold} or {ranked[-1][1]}
    if len(trained) == situation.blocks:
        trained.remove(ranked[0][1])
    return fixed(freeze_blocks(situation, set(range(situation.blocks)) - trained, "semantic-threshold"))


def most_deviating(situation: Situation, options: SemanticOptions) -> Selection:
    """Freeze as many blocks as `semantic` does, but those with the highest deviation."""
    probe = _probe(situation, options)
    count = _cut(situation, probe, options)
    deviations = [one.value or 0.0 for one in probe.signals[options.deviation or probe.deviation or ""]]
    ranked = sorted(range(situation.blocks), key=lambda block: (-deviations[block], block))
    return fixed(freeze_blocks(situation, set(ranked[:count]), "semantic-reversed"))


def as_many_at_random(situation: Situation, options: SemanticOptions) -> Selection:
    """Freeze as many blocks as `semantic` does, but drawn with the run's seed, as in `random`."""
    count = _cut(situation, _probe(situation, options), options)
    draw = random.Random(derive_seed(situation.seed, "strategy", "random"))
    return fixed(freeze_blocks(situation, set(draw.sample(range(situation.blocks), count)), "semantic-random"))


def _probe(situation: Situation, options: Deviation) -> Probe:
    if situation.blocks < 2:
        raise PlanError("the model has one block, so there is no semantic cut: use all, head or lora")
    return situation.probe(None if options.deviation is None else (options.deviation,), options.rows)


def _cut(situation: Situation, probe: Probe, options: SemanticOptions) -> int:
    """k* = max(k*, L - B): how many of the lowest blocks `semantic` freezes."""
    least = 0 if options.most_blocks is None else situation.blocks - options.most_blocks
    return max(probe.cut(options.gain, options.deviation), least)
