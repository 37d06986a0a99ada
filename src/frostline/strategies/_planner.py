"""The planner: of all plans that a budget allows, the one with the largest expected gain.

A candidate trains the blocks from its boundary to the top, in full or with LoRA. Its batches are those of the workload,
or smaller ones with more accumulation; it trains with or without activation checkpointing and an activation cache. Its
expected gain is

    share of the blocks' worth above the boundary  x  worth of the mode (full: 1, LoRA: less)

The reasons are in docs/decisions/0014-what-a-plan-is-worth.md. Of equal gains, the candidate that needs less time is
chosen. The head alone gains 0: it is the last resort.

Memory and time fall as the boundary rises, as long as the same states are stored. So bisection finds the lowest
boundary that fits, for each setup. The cost of the chosen candidate itself was predicted, and fits.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from frostline.core.errors import PlanError
from frostline.cost import predict
from frostline.strategies._candidates import Candidate, Candidates, Freedom, Setup
from frostline.strategies._choice import Choice, ConstraintCost, Option
from frostline.strategies._limits import Limit, Yardstick, limits
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation


def search(situation: Situation, worths: Sequence[float], freedom: Freedom | None = None) -> Choice:
    """The plan, and the settings with it, of the largest expected gain within `situation.budget`.

    Args:
        situation: the model, the budget and the workload.
        worths: a number of 0 or more for each block: what training it is worth, compared with the others.
        freedom: what the planner may choose.

    Raises `PlanError` when nothing fits: it names the limit that is too small and the smallest one that would do.
    """
    if len(worths) != situation.blocks or min(worths) < 0:
        raise ValueError(f"{situation.blocks} blocks need a worth of 0 or more each (given: {list(worths)})")
    freedom = freedom or Freedom()
    decided = {*situation.decided, *(["activation_cache"] if situation.workload.texts > 1 else [])}
    free = tuple(setting for setting in freedom.choose if setting not in decided)
    candidates = Candidates(situation, worths, freedom.model_copy(update={"choose": free}))
    return _Planner(situation, candidates).choice()


def planned(situation: Situation, worths: Sequence[float], freedom: Freedom, strategy: str) -> Selection:
    """What `search` chooses, as the selection of the strategy called `strategy`.

    Args:
        situation, worths, freedom: as in `search`.
        strategy: whose name the plan carries.
    """
    choice = search(situation, worths, freedom)
    return fixed(choice.plan.model_copy(update={"strategy": strategy}), choice=choice)


class _Planner:
    def __init__(self, situation: Situation, candidates: Candidates) -> None:
        self.situation, self.candidates = situation, candidates
        self.whole = Yardstick.of(situation)
        self.limits = limits(situation, self.whole)

    def choice(self) -> Choice:
        found = (self._best([setup], self.limits) for setup in self.candidates.setups)
        ranked = sorted((one for one in found if one is not None), key=self.candidates.rank)
        if not ranked:
            raise PlanError(self._refusal())
        chosen, *others = ranked
        return Choice(
            **vars(self._option(chosen)),
            runner_up=self._option(others[0]) if others else None,
            constraints=tuple(self._cost(limit, chosen) for limit in self.limits),
        )

    def _best(
        self, setups: Sequence[Setup], within: Sequence[Limit], best: Candidate | None = None
    ) -> Candidate | None:
        """The best candidate of some setups that fits, if it is better than `best`; else `best`."""
        gain, rank = self.candidates.gain, self.candidates.rank
        for ladder in (ladder for setup in setups for ladder in self.candidates.ladders(setup)):
            worthwhile = [one for one in ladder if best is None or gain(one) >= gain(best)]
            if worthwhile and self._fits(worthwhile[-1], within):
                lowest = _lowest(worthwhile, lambda one: self._fits(one, within))
                best = lowest if best is None else min(best, lowest, key=rank)
        return best

    def _fits(self, candidate: Candidate, within: Sequence[Limit]) -> bool:
        return all(self.candidates.use(limit.resource, candidate) <= limit.amount * (1 + 1e-9) for limit in within)

    def _option(self, candidate: Candidate) -> Option:
        plan, workload = self.candidates.plan(candidate), self.candidates.workload(candidate)
        return Option(
            mode=candidate.setup.mode,
            plan=plan,
            workload=workload,
            expected_gain=self.candidates.gain(candidate),
            prediction=predict(plan, self.situation.anatomy, workload, self.situation.speed),
            memory_share=self.candidates.use("memory", candidate) / self.whole.memory,
            time_share=self.candidates.use("time", candidate) / self.whole.time,
        )

    def _cost(self, limit: Limit, chosen: Candidate) -> ConstraintCost:
        instead = self._best(self.candidates.setups, self._without(limit), chosen) or chosen
        gain = self.candidates.gain(instead) - self.candidates.gain(chosen)
        return ConstraintCost(limit, self.candidates.use(limit.resource, chosen), gain, self._option(instead))

    def _without(self, limit: Limit) -> list[Limit]:
        return [other for other in self.limits if other is not limit]

    def _refusal(self) -> str:
        """Which limit is too small, and the smallest one that would do; of several the one that lacks least.

        Where no single limit is the reason: each limit that no candidate keeps.
        """
        single = [(limit, found) for limit in self.limits if (found := self._least(limit, self._without(limit)))]
        if single:
            limit, found = min(single, key=lambda pair: self._excess(*pair))
            others = " and ".join(map(str, self._without(limit)))
            return f"no plan fits {self._short(limit, found, f' within {others}' if others else '')}"
        alone = [(limit, found) for limit in self.limits if (found := self._least(limit, ()))]
        short = [self._short(limit, found) for limit, found in alone if not self._fits(found, [limit])]
        if not short:  # of three, any two exclude each other
            return f"no plan fits {', '.join(map(str, self.limits))}, nor any two of them: raise two of these limits"
        return f"no plan fits {'; nor '.join(short)}"

    def _excess(self, limit: Limit, found: Candidate) -> float:
        return self.candidates.use(limit.resource, found) / limit.amount if limit.amount else math.inf

    def _short(self, limit: Limit, found: Candidate, within: str = "") -> str:
        use = self.candidates.use(limit.resource, found)
        needs, more = limit.text(use, enough=True), limit.text(use - limit.amount)
        return f"{limit}{within}: use {limit.resource}={needs} ({more} more), for {self._option(found).what}"

    def _least(self, limit: Limit, within: Sequence[Limit]) -> Candidate | None:
        """The candidate that needs least of a resource, of the highest boundary on each ladder.

        One that needs more than full fine-tuning is left out where the limit is a share of that: no share allows it.
        """
        use, rank = self.candidates.use, self.candidates.rank
        most = math.inf if limit.whole is None else limit.whole
        tops = [ladder[-1] for setup in self.candidates.setups for ladder in self.candidates.ladders(setup)]
        fitting = [one for one in tops if self._fits(one, within) and use(limit.resource, one) <= most]
        return min(fitting, key=lambda one: (use(limit.resource, one), *rank(one)), default=None)


def _lowest(ladder: Sequence[Candidate], fits: Callable[[Candidate], bool]) -> Candidate:
    """The first candidate that fits, if the last one does, and each one after one that does; fastest near the end."""
    high, step = len(ladder) - 1, 1
    while step <= high and fits(ladder[high - step]):
        high, step = high - step, 2 * step
    return ladder[bisect_left(ladder, True, max(0, high - step + 1), high, key=fits)]
