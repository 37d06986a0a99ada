"""Semantic-aware freezing (methods.md 3): where the states turn to the label, and the ablations of that choice."""

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
    """How far the states are from the label, and what it gains from block to block.

    Attributes:
        deviation: `vds` (angle to the label's semantic basis) or `shift` (length of a block's step); None takes
            `vds` where the model has it.
        gain: the deviation's `difference` from block to block, or the `log` of its ratio.
        rows: of the task, on which both are measured.
    """

    deviation: Literal["vds", "shift"] | None = None
    gain: Form = "difference"
    rows: PositiveInt = 256


class SemanticOptions(Deviation):
    """`most_blocks`: at most so many blocks train (the paper's budget B)."""

    most_blocks: PositiveInt | None = None


class ThresholdOptions(Deviation):
    """`threshold`: the least gain of a block that trains; None takes the mean of the gains."""

    threshold: float | None = None


def semantic(situation: Situation, options: SemanticOptions) -> Selection:
    """The blocks up to the one with the largest gain are frozen; the contiguous top trains, or with a budget what of
    it that allows."""
    count = _cut(situation, _probe(situation, options), options)
    if situation.budget.limits:
        worths = [float(index >= count) for index in range(situation.blocks)]
        return planned(situation, worths, Freedom(modes=("full",)), "semantic")
    return fixed(freeze_blocks(situation, set(range(count)), "semantic"))


def over_threshold(situation: Situation, options: ThresholdOptions) -> Selection:
    """The blocks whose gain reaches the threshold train, wherever they lie: at least one, and never all.

    A block without a gain (none comes before it) is frozen.
    """
    gains = [gain.value for gain in _probe(situation, options).gains(options.gain, options.deviation)]
    ranked = sorted((gain, block) for block, gain in enumerate(gains) if gain is not None)
    if not ranked:
        raise PlanError("semantic-threshold: no block has a gain to decide by")
    threshold = fmean(gain for gain, _ in ranked) if options.threshold is None else options.threshold
    trained = {block for gain, block in ranked if gain >= threshold} or {ranked[-1][1]}
    if len(trained) == situation.blocks:
        trained.remove(ranked[0][1])
    return fixed(freeze_blocks(situation, set(range(situation.blocks)) - trained, "semantic-threshold"))


def most_deviating(situation: Situation, options: SemanticOptions) -> Selection:
    """As many blocks as `semantic` freezes are frozen, but those of the highest deviation."""
    probe = _probe(situation, options)
    count = _cut(situation, probe, options)
    deviations = [one.value or 0.0 for one in probe.signals[options.deviation or probe.deviation or ""]]
    ranked = sorted(range(situation.blocks), key=lambda block: (-deviations[block], block))
    return fixed(freeze_blocks(situation, set(ranked[:count]), "semantic-reversed"))


def as_many_at_random(situation: Situation, options: SemanticOptions) -> Selection:
    """As many blocks as `semantic` freezes are frozen, drawn with the run's seed: what `random` draws."""
    count = _cut(situation, _probe(situation, options), options)
    draw = random.Random(derive_seed(situation.seed, "strategy", "random"))
    return fixed(freeze_blocks(situation, set(draw.sample(range(situation.blocks), count)), "semantic-random"))


def _probe(situation: Situation, options: Deviation) -> Probe:
    if situation.blocks < 2:
        raise PlanError("a model of one block has nothing to cut: use all, head or lora")
    return situation.probe(None if options.deviation is None else (options.deviation,), options.rows)


def _cut(situation: Situation, probe: Probe, options: SemanticOptions) -> int:
    """k* = max(k*, L - B): how many of the lowest blocks `semantic` freezes."""
    least = 0 if options.most_blocks is None else situation.blocks - options.most_blocks
    return max(probe.cut(options.gain, options.deviation), least)
