"""Made-up probes, so that the choice of a strategy can be checked by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from frostline.anatomy import Anatomy
from frostline.core.errors import UserError
from frostline.signals import Measurement, Probe

Values = Sequence[float | None]


class MadeUp:
    """Stands for `Situation.measure`: answers with the signals it was given, and remembers what it was asked."""

    def __init__(self, signals: Mapping[str, Values]) -> None:
        self.signals = signals
        self.asked: list[tuple[Sequence[str] | None, int]] = []

    def __call__(self, names: Sequence[str] | None, rows: int) -> Probe:
        self.asked.append((names, rows))
        for name in names or ():
            if name not in self.signals:
                raise UserError(f"{name}: it is not among the made-up signals")
        values = {name: tuple(map(Measurement, column)) for name, column in self.signals.items()}
        return Probe("the model", "the data", rows, "the last input token", values)


def vds(*levels: float) -> dict[str, Values]:
    """`vds` with its gains from d_0, ..., d_L."""
    return {"vds": levels[1:], **_gains("vds", levels, [])}


def shift(*levels: float) -> dict[str, Values]:
    """`shift` with its gains from d_1, ..., d_L; the first block has none."""
    return {"shift": levels, **_gains("shift", levels, [None])}


def made_up(anatomy: Anatomy, seed: int = 0) -> MadeUp:
    """Every signal that a model of this anatomy has, drawn by `seed`."""
    draw = random.Random(seed)

    def some(count: int) -> list[float]:
        return [draw.uniform(0.1, 1.0) for _ in range(count)]

    count = len(anatomy.blocks)
    signals: dict[str, Values] = {"relative_gradient_norm": some(count), "snr": some(count), **shift(*some(count))}
    if anatomy.has_lm_head and not anatomy.encoder_decoder:
        signals |= vds(*some(count + 1))
    for kind in dict.fromkeys(kind for block in anatomy.blocks for kind in kinds(anatomy, block.index)):
        has = [kind in kinds(anatomy, block.index) for block in anatomy.blocks]
        signals[f"snr.{kind}"] = [value if there else None for value, there in zip(some(count), has, strict=True)]
    return MadeUp(signals)


def kinds(anatomy: Anatomy, block: int) -> list[str]:
    """The names of a block's matrices within it."""
    found = anatomy.blocks[block]
    return [linear.name.removeprefix(f"{found.name}.") for linear in found.linears]


def _gains(name: str, levels: Sequence[float], before: list[None]) -> dict[str, Values]:
    steps = list(pairwise(levels))
    logs = [math.log(one / other) if min(one, other) > 0 else None for one, other in steps]
    return {f"{name}_gain": [*before, *(one - other for one, other in steps)], f"{name}_log_gain": [*before, *logs]}
