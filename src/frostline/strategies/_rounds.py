"""How trials are played: who tries, for how long, and who goes on. Plain arithmetic, without a model.

Times are in steps of full fine-tuning. The winner goes on from where its trial ended, so only what the others took is
lost. Early losses say nothing of a boundary (docs/LOG.md): on one of the measured models the plan that overfits leads
until 9 full steps, and chance decides until 20; on the other the order is right from 6 on. So rates of one boundary are
compared first, for a short time, and other plans only where each can have 30 full steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIRST, LEAST = 5.0, 2.5
"""The time that each learning rate is tried for, and the least that says anything."""
OTHERS, MOST_OTHERS = 30.0, 6
"""The time that another plan is tried for, and the most of them."""
MARGIN, MARGIN_LOWER_RATE = 0.03, 0.01
"""The rule's own choice stays, unless another has a loss that is lower by this share. A higher learning rate leads
early and loses its lead later, a lower one does not."""
TURNED = 0.02
"""A held-out loss that is higher than its lowest by this share, twice, has turned."""


@dataclass(frozen=True)
class Rounds:
    """How many learning rates may be tried, for how long, and how many other plans; times in full steps."""

    rates: int
    first: float
    others: int

    def lost(self, start: float) -> float:
        """The time that is lost as a rule, with one learning rate in vain; each trial's start takes `start`."""
        rates = min(self.rates, 2)
        return (rates - 1) * self.first + rates * start + self.others * (OTHERS + start)


def rounds(allowance: float, start: float, rates: int) -> Rounds:
    """What `allowance` full steps pay for.

    Args:
        allowance: how many full steps may be lost.
        start: what the start of a trial costs: a new trainer, and checks.
        rates: the most learning rates: 3, or 1 where the user gave one.
    """
    first = min(FIRST, (allowance - start * rates) / max(1, rates - 1))
    if rates == 1 or first < LEAST:
        rates, first = 1, FIRST
    rest = allowance - (rates - 1) * first - start * rates
    return Rounds(rates, first, max(0, min(MOST_OTHERS, math.floor(rest / (OTHERS + start)))))


def has_turned(losses: Sequence[float]) -> bool:
    """Whether a curve of held-out losses has turned up: the last two are above the lowest before them."""
    if len(losses) < 3:
        return False
    lowest = min(losses[:-2])
    return min(losses[-2:]) > lowest * (1 + TURNED)


def extrapolated(curve: Sequence[tuple[float, float]], end: float) -> float:
    """The loss at `end`, by the power law through the last two points.

    Args:
        curve: pairs of a time and the held-out loss then; times grow.
        end: the time at which the training will end.
    """
    if len(curve) < 2:
        return curve[-1][1]
    (before, high), (now, low) = curve[-2:]
    slope = math.log(low / high) / math.log(now / before)
    return float(low * (max(end, now) / now) ** min(slope, 0.0))


def next_rate(losses: Mapping[int, float]) -> int | None:
    """Which learning rate to try next; None where the best is known.

    Rates are counted from the rule's, 0; the next higher one is 1, the next lower one -1. Higher ones are tried as long
    as each is better than the one before. Lower ones are tried where the first higher one is clearly worse, since then
    the rule's may be too high itself. A training that diverged has an infinite loss.

    Args:
        losses: rate -> held-out loss after the same steps.
    """
    best, highest, lowest = best_rate(losses), max(losses), min(losses)
    if math.isinf(losses[best]):
        return lowest - 1  # all diverged
    if best == highest:
        return highest + 1
    clearly_worse = losses.get(1, math.inf) > losses[0] * (1 + MARGIN) or math.isinf(losses[0])
    return lowest - 1 if best == lowest and clearly_worse else None


def best_rate(losses: Mapping[int, float]) -> int:
    """The best learning rate, counted as in `next_rate`; the rule's, unless another is better by the margin.

    Args:
        losses: rate -> held-out loss after the same steps.
    """
    margins = {rate: MARGIN * rate if rate > 0 else MARGIN_LOWER_RATE * -rate for rate in losses}
    return min(losses, key=lambda rate: losses[rate] * (1 + margins[rate]))


def best_plan(losses: Sequence[float], turned: Sequence[bool]) -> int:
    """The place of the best plan; the first, which is the rule's, unless another is better by the margin.

    One whose loss has turned is out, whatever its loss, as long as another has not.

    Args:
        losses: held-out losses, extrapolated to the end of the run.
        turned: whether each loss has turned.
    """
    kept = [place for place, turns in enumerate(turned) if not turns] or list(range(len(losses)))
    return min(kept, key=lambda place: losses[place] * (1 + MARGIN * (place > 0)))
