"""Spectrum (methods.md 6): train the matrices of each kind that have the highest signal-to-noise ratio."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean

from pydantic import Field

from frostline.anatomy import Block
from frostline.core.settings import Options
from frostline.plan import BlockMode, Frozen, Partial
from frostline.signals import Probe
from frostline.strategies._plans import plan_of
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation

SNR = "snr"


class SpectrumOptions(Options):
    """The options of `spectrum`.

    Attributes:
        share: the share of the matrices of each kind that trains.
    """

    share: float = Field(0.5, gt=0, le=1)


def spectrum(situation: Situation, options: SpectrumOptions) -> Selection:
    """Train the share of each kind of matrix (its name within the block) with the highest SNR, and at least one.

    A module that holds several matrices (experts in one tensor) has their mean SNR. A block without a chosen matrix is
    frozen. Only weights are read, no rows.
    """
    probe = situation.probe((SNR,), 1)
    ratios: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for block in situation.anatomy.blocks:
        for module, ratio in _ratios(probe, block).items():
            ratios[module].append((ratio, block.index))
    chosen: dict[int, list[str]] = defaultdict(list)
    for module, ranked in ratios.items():
        count = max(1, math.floor(options.share * len(ranked) + 0.5))
        for _, index in sorted(ranked, reverse=True)[
            :count
        ]:  # of equal ones the upper block, which costs less to train
            chosen[index].append(module)
    modes = (_training(chosen[index]) for index in range(situation.blocks))
    return fixed(plan_of(situation, modes, "spectrum"))


def _ratios(probe: Probe, block: Block) -> dict[str, float]:
    """Module within the block -> the mean SNR of its matrices."""
    found: dict[str, list[float]] = defaultdict(list)
    for linear in block.linears:
        module, _, _ = linear.weight.removeprefix(f"{block.name}.").rpartition(".")
        ratio = probe.signals[f"{SNR}.{linear.name.removeprefix(f'{block.name}.')}"][block.index].value
        if ratio is not None:
            found[module].append(ratio)
    return {module: fmean(ratios) for module, ratios in found.items()}


def _training(modules: list[str]) -> BlockMode:
    return Partial(train=tuple(modules)) if modules else Frozen()
