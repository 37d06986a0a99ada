"""The planner: of all plans that a budget allows, the one with the largest expected gain.

A candidate trains the blocks from its boundary to the top, in full or with LoRA. Its batches are those of the workload,
or smaller ones with more accumulation; it trains with or without activation checkpointing and an activation cache.
Its expected gain follows from the blocks above the boundary, the mode, and the passes over the rows (`_worth`). Where
the time of the budget is to be spent, each candidate makes as many passes as the time pays for; else all make those of
the workload. The reasons are in docs/decisions/0023-auto-tries.md. Of equal gains, the candidate that needs less time
is chosen. The head alone gains 0: it is the last resort.

Memory and the time of a step fall as the boundary rises, as long as the same states are stored. So bisection finds the
lowest boundary that fits, for each setup. The cost of the chosen candidate itself was predicted, and fits.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from frostline.core.errors import PlanError
from frostline.cost import predict
from frostline.strategies._candidates import Candidate, Candidates, Freedom, Setup
from frostline.strategies._choice import AboveMode, Choice, ConstraintCost, Option
from frostline.strategies._limits import Limit, Yardstick, limits
from frostline.strategies._selection import Selection, fixed
from frostline.strategies._situation import Situation


def search(
    situation: Situation, worths: Sequence[float], freedom: Freedom | None = None, *, spend: bool = False
) -> Choice:
    """The plan, and the settings with it, of the largest expected gain within `situation.budget`.

    Args:
        situation: the model, the budget and the workload.
        worths: a number of 0 or more for each block: what training it is worth, compared with the others.
        freedom: what the planner may choose.
        spend: spend the time of the budget, by as many passes over the rows as it pays for. Else the passes are those
            of the workload, and the time is a limit.

    Raises `PlanError` when nothing fits: it names the limit that is too small and the smallest one that would do.
    """
    return Planner.of(situation, worths, freedom or Freedom(), spend=spend).choice()


def planned(
    situation: Situation, worths: Sequence[float], freedom: Freedom, strategy: str, *, spend: bool = False
) -> Selection:
    """What `search` chooses, as the selection of the strategy called `strategy`.

    Args:
        situation, worths, freedom, spend: as in `search`.
        strategy: whose name the plan carries.
    """
    choice = search(situation, worths, freedom, spend=spend)
    return fixed(choice.plan.model_copy(update={"strategy": strategy}), choice=choice)


class Planner:
    """Finds the best candidates within limits."""

    def __init__(self, situation: Situation, candidates: Candidates, whole: Yardstick, within: Sequence[Limit]) -> None:
        self.situation, self.candidates, self.whole, self.limits = situation, candidates, whole, within

    @classmethod
    def of(cls, situation: Situation, worths: Sequence[float], freedom: Freedom, *, spend: bool) -> Planner:
        """The planner for the budget of a situation; the arguments are those of `search`."""
        if len(worths) != situation.blocks or min(worths) < 0:
            raise ValueError(f"{situation.blocks} blocks need a worth of 0 or more each (given: {list(worths)})")
        decided = {*situation.decided, *(["activation_cache"] if situation.workload.texts > 1 else [])}
        free = tuple(setting for setting in freedom.choose if setting not in decided)
        whole = Yardstick.of(situation)
        found = limits(situation, whole)
        time = next((limit.amount for limit in found if limit.resource == "time"), None) if spend else None
        candidates = Candidates(situation, worths, freedom.model_copy(update={"choose": free}), time)
        return cls(situation, candidates, whole, found)

    def choice(self) -> Choice:
        ranked = self._ranked()
        if not ranked:
            raise PlanError(self._refusal())
        chosen, *others = ranked
        return Choice(
            **vars(self._option(chosen)),
            runner_up=self._option(others[0]) if others else None,
            constraints=tuple(self._cost(limit, chosen) for limit in self.limits),
            instead=tuple(self._instead(chosen)),
        )

    def at(self, mode: AboveMode, boundary: int, untie: bool) -> Option | None:
        """The best option that trains so from a boundary on, or None where none fits."""
        setups = [one for one in self.candidates.setups if (one.mode, one.untie) == (mode, untie)]
        ladders = (ladder for setup in setups for ladder in self.candidates.ladders(setup))
        found = [
            one for ladder in ladders for one in ladder if one.boundary == boundary and self._fits(one, self.limits)
        ]
        return self._option(min(found, key=self.candidates.rank)) if found else None

    def _ranked(self) -> list[Candidate]:
        """The best candidate of each setup that has one, the best of all first."""
        found = (self._best([setup], self.limits) for setup in self.candidates.setups)
        return sorted((one for one in found if one is not None), key=self.candidates.rank)

    def _best(
        self, setups: Sequence[Setup], within: Sequence[Limit], best: Candidate | None = None
    ) -> Candidate | None:
        """The best candidate of some setups that fits, if it is better than `best`; else `best`."""
        gain, rank = self.candidates.gain, self.candidates.rank
        for ladder in (ladder for setup in setups for ladder in self.candidates.ladders(setup)):
            worthwhile = [one for one in ladder if best is None or gain(one) >= gain(best)]
            if worthwhile and self._fits(worthwhile[-1], within):
                fitting = worthwhile[_lowest(worthwhile, lambda one: self._fits(one, within)) :]
                most = max(map(gain, fitting))
                best = min((one for one in (*fitting, *([best] if best else [])) if gain(one) >= most), key=rank)
        return best

    def _fits(self, candidate: Candidate, within: Sequence[Limit]) -> bool:
        return all(self.candidates.use(limit.resource, candidate) <= limit.amount * (1 + 1e-9) for limit in within)

    def _option(self, candidate: Candidate) -> Option:
        plan, workload = self.candidates.plan(candidate), self.candidates.workload(candidate)
        prediction = predict(plan, self.situation.anatomy, workload, self.situation.speed)
        return Option(
            mode=candidate.setup.mode,
            plan=plan,
            workload=workload,
            expected_gain=self.candidates.gain(candidate),
            prediction=prediction,
            memory_share=prediction.peak_memory_bytes / self.whole.memory,
            time_share=self.candidates.taken(candidate) / self.whole.time,
        )

    def _cost(self, limit: Limit, chosen: Candidate) -> ConstraintCost:
        free = self._with(self._without(limit))
        instead = free._best(free.candidates.setups, free.limits, chosen) or chosen
        gain = free.candidates.gain(instead) - self.candidates.gain(chosen)
        return ConstraintCost(limit, self._used(limit, chosen), gain, free._option(instead))

    def _used(self, limit: Limit, chosen: Candidate) -> float:
        taken = limit.resource == "time"
        return self.candidates.taken(chosen) if taken else self.candidates.use(limit.resource, chosen)

    def _with(self, within: Sequence[Limit]) -> Planner:
        """The planner with other limits; without one of time, a time that is to be spent has no end."""
        time = next((limit.amount for limit in within if limit.resource == "time"), math.inf)
        candidates = self.candidates if self.candidates.time is None else self.candidates.spending(time)
        return Planner(self.situation, candidates, self.whole, within)

    def _instead(self, chosen: Candidate) -> Iterator[tuple[str, Option | None]]:
        """What would be chosen with twice the time, and with half the memory of the chosen candidate."""
        used = Limit("memory", "half", self.candidates.use("memory", chosen) / 2)
        halved = [*(limit for limit in self.limits if limit.resource != "memory"), used]
        twice = [
            replace(limit, amount=2 * limit.amount) if limit.resource == "time" else limit for limit in self.limits
        ]
        if twice != list(self.limits):
            yield "twice the time", self._with(twice)._first()
        yield "half the memory", self._with(halved)._first()

    def _first(self) -> Option | None:
        ranked = self._ranked()
        return self._option(ranked[0]) if ranked else None

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
        what = self._option(found).what
        if limit.resource == "memory" and use == self.candidates.evaluation(found):
            what += ", evaluated row by row"
        return f"{limit}{within}: use {limit.resource}={needs} ({more} more), for {what}"

    def _least(self, limit: Limit, within: Sequence[Limit]) -> Candidate | None:
        """The candidate that needs least of a resource, of the highest boundary on each ladder.

        One that needs more than full fine-tuning is left out where the limit is a share of that: no share allows it.
        """
        use, rank = self.candidates.use, self.candidates.rank  # of time, that of one step where it is to be spent
        most = math.inf if limit.whole is None else limit.whole
        tops = [ladder[-1] for setup in self.candidates.setups for ladder in self.candidates.ladders(setup)]
        fitting = [one for one in tops if self._fits(one, within) and use(limit.resource, one) <= most]
        return min(fitting, key=lambda one: (use(limit.resource, one), *rank(one)), default=None)


def _lowest(ladder: Sequence[Candidate], fits: Callable[[Candidate], bool]) -> int:
    """The first candidate that fits, if the last one does, and each one after one that does; fastest near the end."""
    high, step = len(ladder) - 1, 1
    while step <= high and fits(ladder[high - step]):
        high, step = high - step, 2 * step
    return bisect_left(ladder, True, max(0, high - step + 1), high, key=fits)
