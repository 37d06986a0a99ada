"""Choose by trying: short trainings of a few plans and learning rates, of which the best goes on.

A trial holds its learning rate after a warm-up, so the run that comes of it can go on from where the trial ended, and
lets the rate fall at its end (warmup_stable_decay). What is measured, and which steps follow from it, is written down
at once: trials that were interrupted go on, and end as they would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frostline.anatomy import fingerprint
from frostline.core.cache import keep
from frostline.core.errors import FrostlineError, TrainingError
from frostline.core.files import write_json
from frostline.core.sizes import duration_text
from frostline.processes import running
from frostline.run._judge import Clock, JudgedTrainer, Pause, wall_time
from frostline.run._trials import (
    CHECKS,
    DECAY,
    FIRST_LOOK,
    JUDGED,
    MOST_RATES,
    SPARE,
    TRIALS_FILE,
    Attempt,
    Terms,
    kept_at,
    read_kept,
    read_trials,
)
from frostline.run._versions import versions
from frostline.strategies import (
    OTHERS,
    PASSES,
    RATE_STEP,
    Contenders,
    Option,
    Rounds,
    best_plan,
    best_rate,
    extrapolated,
    has_turned,
    next_rate,
    rounds,
)


class Tournament:
    """Trials within a part of a time budget.

    Args:
        terms: of the run.
        yardstick: gives the plan whose steps are measured, and its step as a share of full fine-tuning's.
        contend: gives the plans to choose from, for a time as a share of full fine-tuning's.
        make: makes the trainer of an attempt.
        clock: what tells the time.
        folder: where trials are kept while they run.
        say: shows a line.
        identity: all that the trials depend on besides the model, as plain data: trials that were made once with the
            same are not made again.
        asked: the settings that were asked for; they are written beside the trials.
    """

    def __init__(
        self,
        terms: Terms,
        yardstick: Callable[[], tuple[Option, float]],
        contend: Callable[[float], Contenders],
        make: Callable[[Attempt], JudgedTrainer],
        clock: Clock,
        folder: Path,
        say: Callable[[str], None],
        identity: Mapping[str, Any],
        asked: Mapping[str, Any],
    ) -> None:
        self._asked = asked
        self._fields: dict[float, Contenders] = {}
        self._identity = {**identity, "terms": asdict(terms), "versions": versions()}
        self._terms, self._yardstick, self._contend, self._make = terms, yardstick, contend, make
        self._clock, self._folder, self._say = clock, folder, say
        path = folder / TRIALS_FILE
        self.found: dict[str, Any] = running().once(lambda: read_trials(path) if path.is_file() else {"trials": {}})

    def play(self) -> dict[str, Any]:
        """Try, and give what was found: every trial, and what was chosen. Plain data.

        What the winner trained lies in the folder of its trial, in `checkpoint-<steps>`.
        """
        if "chosen" not in self.found and not self._known():
            self._play()
            running().once(lambda: keep(Path(self.found["kept"]), self.found))
        return self.found

    def field(self) -> Contenders:
        """What there is to choose from, for the time that is left after the trials."""
        full, start = self.found["full_step_seconds"], self.found["start_seconds"]
        if "left_seconds" not in self.found:
            self._note(left_seconds=self._left(full, start))
        return self._options(self.found["left_seconds"] / (self._terms.full_steps * full))

    def _left(self, full: float, start: float) -> float:
        """What trials leave of the budget, about."""
        found = self.found
        trials = Rounds(**found["rounds"]).lost(start / full) * full
        lost = found["measuring_seconds"] + found["planning_seconds"] + trials
        return float((found["budget_seconds"] - lost) * (1 - CHECKS))

    def _options(self, share: float) -> Contenders:
        """What fits a share of the time; the time of finding it counts."""
        if share not in self._fields:
            begun = self._clock()
            self._fields[share] = self._contend(share)
            self._note(planning_seconds=self.found["planning_seconds"] + self._clock() - begun)
        return self._fields[share]

    def winner(self) -> Option:
        """The option that was chosen."""
        name, field = self.found["chosen"]["option"], self.field()
        return next(option for option in (field.first, *field.others) if option.short == name)

    def _known(self) -> bool:
        """Measure a step of full fine-tuning; say whether the same trials were made before."""
        if "full_step_seconds" not in self.found:
            begun = self._clock()
            option, share = self._yardstick()
            self._note(planning_seconds=self._clock() - begun)
            trainer = self._make(Attempt(option, 1e-9, self._folder / "trials" / "yardstick", Pause.MEASURED))
            kept = kept_at({**self._identity, "model": fingerprint(trainer.applied.base)})
            if (before := running().once(lambda: read_kept(kept))) is not None:
                self.found = before
                self._note(before=True)
                self._say(f"the same trials were made before, and are not made again: {kept}")
                return True
            self._say(f"measuring a step: {option.what}")
            self._measure(trainer, share, kept)
        return False

    def _measure(self, trainer: JudgedTrainer, share: float, kept: Path) -> None:
        """Measure a step of the yardstick, which is a `share` of one of full fine-tuning."""
        begun = self._clock()
        trainer.args.max_steps = Pause.MEASURED
        pause = Pause(trainer, lambda _: [], None, self._terms.step_tokens)
        trainer.add_callback(pause)
        trainer.train()
        assert pause.step_seconds is not None
        seconds = self._clock() - begun
        self._note(
            kept=str(kept),
            full_step_seconds=pause.step_seconds / share,
            start_seconds=seconds - pause.stepping_seconds,
            measuring_seconds=seconds,
        )

    def _play(self) -> None:
        terms, full = self._terms, self.found["full_step_seconds"]
        budget = terms.seconds or terms.full_steps * full * (terms.share or 1.0)
        if "rounds" not in self.found:
            clock = "wall time" if self._clock is wall_time else "processor time"
            allowed = (terms.lost * budget - self._spent()) / full
            played = rounds(allowed, self.found["start_seconds"] / full, 3 if terms.rate is None else 1)
            self._note(clock=clock, budget_seconds=budget, rounds=asdict(played))
        field, plan = self.field(), Rounds(**self.found["rounds"])
        self._announce(plan, budget, full)
        rate = terms.rate or field.learning_rate
        tried: dict[int, dict[str, Any]] = {}
        place: int | None = 0
        losses: dict[int, float] = {}
        # Where every rate diverged, more are tried than the allowance pays for: there is nothing else to train.
        while place is not None and (
            len(tried) < plan.rates or (math.isinf(min(losses.values())) and len(tried) < MOST_RATES)
        ):
            tried[place] = self._try(field, field.first, rate * RATE_STEP**place, plan.first * full)
            losses = {one: _last_loss(trial) for one, trial in tried.items()}
            place = next_rate(losses)
        best = tried[best_rate(losses)]
        if not best["curve"]:
            raise TrainingError(
                f"auto: the loss was no number at any learning rate that was tried ({best['learning_rate']:g} and "
                "others): use a lower learning_rate, or check the data"
            )
        self._tell([one for one in tried.values() if one is not best], "lost")
        if plan.others:
            best = self._against(best, field, plan.others, budget)
        self._tell([best], "won")
        self._choose(best, field, budget)

    def _against(self, best: dict[str, Any], field: Contenders, others: int, budget: float) -> dict[str, Any]:
        """The best of a plan and others, each at the learning rate that was found."""
        full = self.found["full_step_seconds"]
        tried = [
            self._try(field, option, best["learning_rate"], OTHERS * full)
            for option in (field.first, *field.others[:others])
        ]
        losses = []
        tried = [one for one in tried if one["curve"]]
        for one in tried:
            end = min(budget, PASSES * self._terms.rows / self._terms.step_rows * one["step_seconds"])
            losses.append(extrapolated([(seconds, loss) for _, seconds, loss in one["curve"]], end))
            self._update(one["name"], expected_loss=losses[-1])
        turned = [has_turned([loss for *_, loss in one["curve"]]) for one in tried]
        won = tried[best_plan(losses, turned)]
        for one, turns in zip(tried, turned, strict=True):
            if one is not won:
                self._tell([one], "turned" if turns else "lost")
        return won

    def _try(self, field: Contenders, option: Option, rate: float, seconds: float) -> dict[str, Any]:
        """Train an option at a rate until its steps have taken `seconds`; what is done already stays done."""
        rate = float(f"{rate:.2g}")
        name = f"{option.short}-{rate:g}"
        same = (one for one in self._trials if one["option"] == option.short)
        known = [one["step_seconds"] for one in same if "step_seconds" in one]
        expected = known[0] if known else field.step_share(option) * self.found["full_step_seconds"]
        entry = self.found["trials"].setdefault(
            name,
            {
                "name": name,
                "option": option.short,
                "what": option.what,
                "learning_rate": rate,
                "result": "running",
                "seconds": 0.0,
                "stops": [],
                "curve": [],
            },
        )
        done = entry["curve"][-1][0] if entry["curve"] else 0
        if entry["result"] == "diverged" or (done and entry["curve"][-1][1] >= 0.9 * seconds):
            return dict(entry)

        def stops(step: float) -> list[int]:
            """The steps to be judged at; written down as soon as they are known."""
            if not entry["stops"] or entry["stops"][-1] <= done:
                last = max(done + Pause.MEASURED, min(round(seconds / step), self._most))
                middle = [(last + done) // 2] if seconds > FIRST_LOOK * self.found["full_step_seconds"] else []
                self._update(name, step_seconds=step, stops=[*middle, last])
            return list(entry["stops"])

        self._say(f"trial: {option.what}, learning rate {rate:g}")
        begun = self._clock()
        folder = self._folder / "trials" / name
        steps = min(self._most, max(Pause.MEASURED, round(1.1 * seconds / expected)))
        trainer = self._make(Attempt(option, rate, folder, steps))
        loaded = self._clock() - begun
        pause = Pause(trainer, stops, known[0] if known else None, self._terms.step_tokens)
        trainer.add_callback(pause)
        try:
            trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{done}") if done else None)
        except TrainingError:
            self._update(name, seconds=entry["seconds"] + self._clock() - begun, curve=[], result="diverged")
            return dict(self.found["trials"][name])
        if not pause.losses or pause.step_seconds is None:
            raise FrostlineError(f"the trial {name} ended before it was judged")
        report = trainer.cache_report
        self._update(
            name,
            step_seconds=pause.median,
            curve=[*entry["curve"], *([step, step * pause.step_seconds, loss] for step, loss in pause.losses.items())],
            seconds=entry["seconds"] + self._clock() - begun,
            judging_seconds=pause.judging_seconds / len(pause.losses),
            loading_seconds=loaded,
            opening_seconds=trainer.opening_seconds,
            rows_stored=report.rows + report.found if report.used else 0,
        )
        return dict(self.found["trials"][name])

    def _choose(self, best: dict[str, Any], field: Contenders, budget: float) -> None:
        """How long the winner goes on: as long as its steps, its start and its judging fit the budget."""
        terms, done = self._terms, best["curve"][-1][0]
        option = next(one for one in (field.first, *field.others) if one.short == best["option"])
        missing = max(0.0, 1 - best["rows_stored"] / terms.rows) if best["rows_stored"] else 0.0
        caching = missing * field.caching_share(option) * self.found["full_step_seconds"]
        start = best["loading_seconds"] + self.found["start_seconds"] + caching
        left = budget * (1 - SPARE) - self._spent() - start - JUDGED * best["judging_seconds"]
        affordable = done + math.floor(left / best["step_seconds"])
        most = round(PASSES * terms.rows / terms.step_rows)
        steps = max(min(affordable, most), math.ceil((done + 1) / (1 - DECAY)))
        self._note(
            chosen={
                "name": best["name"],
                "option": best["option"],
                "learning_rate": best["learning_rate"],
                "max_steps": steps,
                "from_step": done,
                "affordable_steps": affordable,
                "spent_seconds": self._spent(),
                "step_seconds": best["step_seconds"],
            }
        )

    @property
    def _trials(self) -> list[dict[str, Any]]:
        return list(self.found["trials"].values())

    @property
    def _most(self) -> int:
        """The most steps of a trial: half of the passes that a run makes."""
        return max(Pause.MEASURED, round(PASSES / 2 * self._terms.rows / self._terms.step_rows))

    def _spent(self) -> float:
        """Seconds that were spent so far."""
        found = self.found
        before = found["planning_seconds"] + found["measuring_seconds"]
        return float(before + sum(one["seconds"] for one in self._trials))

    def _tell(self, trials: Sequence[dict[str, Any]], result: str) -> None:
        for one in trials:
            ended = result if one["curve"] else "diverged"
            self._update(one["name"], result=ended)
            loss = f"loss {one['curve'][-1][2]:.3f}, " if one["curve"] else ""
            self._say(f"{one['what']}, learning rate {one['learning_rate']:g}: {loss}{ended}")

    def _announce(self, plan: Rounds, budget: float, full: float) -> None:
        share, lost = budget / (full * self._terms.full_steps), duration_text(self._terms.lost * budget)
        others = f", and {plan.others} other plans" if plan.others else ""
        self._say(
            f"the budget is {duration_text(budget)}, {share:.2f} of full fine-tuning; at most {lost} of it may be lost "
            f"in trials, which pays for at most {plan.rates} learning rates{others}"
        )

    def _update(self, name: str, **values: Any) -> None:
        self.found["trials"][name].update(values)
        self._save()

    def _note(self, **values: Any) -> None:
        self.found.update(values)
        self._save()

    def _save(self) -> None:
        document = {**self.found, "asked": self._asked, "processes": running().count}
        running().once(lambda: write_json(self._folder / TRIALS_FILE, document))


def _last_loss(trial: dict[str, Any]) -> float:
    """The last held-out loss of a trial; infinite where its training diverged."""
    return float(trial["curve"][-1][2]) if trial["curve"] else math.inf
