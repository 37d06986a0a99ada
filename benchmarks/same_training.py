"""Random trainings under a plan, each against a plain `transformers.Trainer`: are they the same?

    python benchmarks/same_training.py [--attach] [--runs 1000] [--seed 0] [--only N] [--verbose]

A run draws a tiny model of some architecture and head, a plan, and how it is trained: activation cache, packed rows,
accumulation, bf16, data and collators that change, losses, and callbacks that look at the model or change it
(`combinations.py`, `looks.py`). The same tensors train in a plain trainer, by `requires_grad`; a step of several
batches is one batch there. Losses of every step and of evaluation, what the callback saw, and the trained weights have
to be equal, or one of `trainer.notices` says why not. A run that frostline refuses has to say why, with an error of its
own.

With `--attach` the plain trainer is beside one of its own class with `frostline.attach`. Both accumulate as
transformers does, and the cache is used also where rows are seen once.

`--only N` makes the run with this number alone and shows all of its values.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from combinations import Collator, Combination, Rows, arguments, data_set, draw, model_for, rows_for
from looks import Look, own_loss, place_of, trainer_class
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from frostline.core.errors import FrostlineError, TrainingError
from frostline.engine import Trainer, attach
from frostline.engine._sampler import GroupedByLength
from frostline.plan import FixedSchedule, Plan
from frostline.run import make_schedule
from frostline.surgery import apply

NEAR = {False: 1e-4, True: 2e-2}
"""Losses and what callbacks see, relative: float32 sums in another order; bf16 rounds every product to 8 bits, and a
batch of another shape, or states that were stored, round elsewhere."""
NEAR_STEP = {False: 2e-3, True: 2e-1}
"""Weights, relative to how far they moved (or to a tenth of the farthest one): a gradient is as many operations again
as a loss, and its own norm is much smaller than the numbers that it is a difference of."""


@dataclass
class Outcome:
    """What came of a run. `wrong` says in one line what differs without a reason; `since` is the step from
    which a notice says that results may differ."""

    wrong: str = ""
    refused: str = ""
    declined: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    trained: bool = False
    compared: bool = True
    since: int | None = None


@dataclass
class Trained:
    """A training that has ended: its log, what the look saw, the weights."""

    losses: list[float]
    evaluations: list[float]
    seen: list[tuple[str, float]]
    weights: dict[str, torch.Tensor]
    names: list[str]


class Plain(transformers.Trainer):
    """transformers' own trainer. Rows grouped by length come in frostline's order, which a resumed run can repeat."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return GroupedByLength(sampler.batch_size, sampler.lengths, self.args.seed)
        return sampler


class Positions(TrainerCallback):
    """Notes whether head or last block run at the loss positions alone."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.used = trainer, False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        attachment = getattr(self.trainer, "_frostline_attachment", None)
        positions = self.trainer.positions if attachment is None else attachment._positions
        self.used |= positions is not None and (positions.last_block or positions.chunked_head)


class Freezing(TrainerCallback):
    """In plain training: freezes at a step what the schedule froze there."""

    def __init__(self, trained: dict[int, set[str]]) -> None:
        self.trained = trained

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, parameter in model.named_parameters():
            if state.global_step in self.trained:
                parameter.requires_grad_(name in self.trained[state.global_step])


def made(chosen: Combination, base: Any, folder: Path, model: Any, whole: bool, **options: Any) -> Any:
    """A trainer with the combination's rows, collator and losses."""
    rows = data_set(rows_for(chosen, chosen.count, 3), chosen.data)
    evaluated = Rows(rows_for(chosen, 5, 4), "rows")
    if chosen.loss == "loss function":
        options["compute_loss_func"] = lambda output, labels, num_items_in_batch=None: own_loss(chosen, output, labels)
    return trainer_class(base, chosen)(
        model,
        arguments(chosen, folder, whole),
        train_dataset=rows,
        eval_dataset=evaluated if chosen.evaluates else None,
        data_collator=Collator(chosen.collator),
        **options,
    )


def look_of(chosen: Combination) -> Look:
    rows = rows_for(chosen, 3, 3 if chosen.seed % 2 else 9)
    batch = Collator("right" if chosen.head != "answers" else chosen.collator)(
        [{name: value for name, value in row.items() if name not in ("number", "text")} for row in rows]
    )
    return Look(chosen, 1 + chosen.seed % (chosen.steps - 1), batch)


def trained(trainer: Any, look: Look, place: str, twice: bool) -> Trained:
    look.begin(trainer, place)
    transformers.set_seed(7)
    trainer.train()
    log = trainer.state.log_history
    if twice:
        trainer.train()
        log = [*log, *trainer.state.log_history]
    model = trainer.model
    return Trained(
        [entry["loss"] for entry in log if "loss" in entry],
        [entry["eval_loss"] for entry in log if "eval_loss" in entry],
        look.seen,
        {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad},
        list(model.state_dict()),
    )


def plain_of(chosen: Combination, ours: Any, folder: Path) -> Any:
    """transformers' trainer of the same tensors."""
    first = ours.first_plan
    model = model_for(chosen)
    if not ours.first_trained <= {name for name, _ in model.named_parameters()}:
        apply(first, model, seed=chosen.seed)  # adapters, rows of matrices, an untied head: the model has none of them
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ours.first_trained)
    options: dict[str, Any] = {}
    scales = ours.first_scales
    if set(scales.values()) - {1.0}:
        groups = [
            {"params": [parameter], "lr": 0.05 * scales.get(name, 1.0)}
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        options["optimizers"] = (torch.optim.SGD(groups, lr=0.05), None)
    plain = made(chosen, Plain, folder, model, isinstance(ours, Ours), **options)
    if ours.trained_at:
        plain.add_callback(Freezing(ours.trained_at))
    return plain


class Ours(Trainer):
    """frostline's trainer. It notes what trains after each change of the plan."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.trained_at: dict[int, set[str]] = {}
        self.first_plan, self.first_trained = self.applied.plan, self._trains()
        self.first_scales = self.applied.lr_scales

    def _trains(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _change_plan(self, plan: Plan) -> None:
        super()._change_plan(plan)
        self.trained_at[self.state.global_step] = self._trains()

    def _loss_is_overridden(self) -> bool:
        return "compute_loss" in vars(self) or type(self).compute_loss is not Trainer.compute_loss


def attached(trainer: Any, schedule: Any, **options: Any) -> Any:
    """The trainer with `frostline.attach`, which notes what `Ours` does."""
    attach(trainer, schedule=schedule, **options)
    attachment, model = trainer._frostline_attachment, trainer.model

    def trains() -> set[str]:
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def change(plan: Plan, own: Any = attachment._change) -> None:
        own(plan)
        trainer.trained_at[trainer.state.global_step] = trains()

    applied = attachment._applied
    trainer.first_plan, trainer.first_trained, trainer.first_scales = applied.plan, trains(), applied.lr_scales
    trainer.trained_at, attachment._change = {}, change
    return trainer


def ours_of(chosen: Combination, folder: Path, cache: str, attaches: bool) -> Any:
    model = model_for(chosen)
    options = {"warmup_steps": 2} if chosen.plan.startswith("adt") else {}
    rows = rows_for(replace(chosen, data="rows", collator="right"), 6, 8)
    schedule: Any = make_schedule(
        model, chosen.plan, options=options, seed=chosen.seed, data=rows, data_collator=Collator("right")
    )
    if schedule.settled:
        schedule = FixedSchedule(without_dropout(schedule.first))
    if attaches:
        plain = made(chosen, Plain, folder, model, False)
        return attached(plain, schedule, activation_cache=cache, loss_positions=chosen.positions)
    trainer = made(
        chosen, Ours, folder, model, False, schedule=schedule, activation_cache=cache, loss_positions=chosen.positions
    )
    own = trainer.session._training
    trainer.session._training = lambda: replace(own(), estimate=None)  # `auto` uses it where training stays the same
    assert isinstance(trainer, Ours)
    return trainer


def without_dropout(plan: Plan) -> Plan:
    """The plan, with adapters that draw no random numbers: batches of another shape draw others."""
    blocks = (mode.model_copy(update={"dropout": 0.0} if hasattr(mode, "dropout") else {}) for mode in plan.blocks)
    return plan.model_copy(update={"blocks": tuple(blocks)})


def run(chosen: Combination, folder: Path, verbose: bool = False, attaches: bool = False) -> Outcome:
    """Train in both ways and compare."""
    found = Outcome()
    place = place_of(model_for(chosen), chosen.place)
    cache = "on" if attaches and chosen.cache == "auto" else chosen.cache
    while True:
        look = look_of(chosen)
        try:
            ours = ours_of(chosen, folder, cache, attaches)
            positions = Positions(ours)
            ours.add_callback(positions)
            mine = trained(ours, look, place, chosen.twice)
            break
        except FrostlineError as error:
            found.refused = str(error)
            if isinstance(error, TrainingError):  # the loss is no number: nor is it in plain training
                losses = trained(plain_of(chosen, ours, folder), look_of(chosen), place, chosen.twice).losses
                found.wrong = "" if any(map(math.isnan, losses)) else f"refused: {error}"
            if cache != "on" or "activation_cache: on" not in str(error):
                return found
            cache = "auto"  # where it is not possible, training has to be the same without it
    found.trained = True
    report, notices = ours.cache_report, ours.notices
    found.used |= {"cache"} if report.used else set()
    found.used |= {"loss positions"} if positions.used else set()
    found.used |= {"accumulation"} if chosen.accumulation > 1 else set()
    found.declined = [*notices]
    if any("a step is the mean over" in notice for notice in notices):
        found.compared = False
        return found
    frozen = any(mode.mode == "frozen" for mode in ours.first_plan.blocks) or bool(ours.trained_at)
    if chosen.dropout and (frozen or ours.first_plan.embeddings.mode == "frozen"):
        other: Any = ours_of(
            chosen, folder, "off", attaches
        )  # frozen blocks are in eval mode, in a plain trainer they are not
    else:
        other = plain_of(chosen, ours, folder)
    its_look = look_of(chosen)
    its = trained(other, its_look, place, chosen.twice)
    since = min(
        (int(n) for notice in notices for n in re.findall(r"Results since step (\d+) may", notice)), default=None
    )
    if verbose:
        for what in ("losses", "evaluations", "seen"):
            print(what, getattr(mine, what)[-8:], getattr(its, what)[-8:], sep="\n    ")
        print("\n".join(found.declined), report, sep="\n")
    found.since = since
    found.wrong = difference(chosen, mine, its, since)
    return found


def difference(chosen: Combination, mine: Trained, its: Trained, since: int | None) -> str:
    """In one line how the trainings differ; empty where they do not. Steps from `since` on may, as a notice says."""
    near = NEAR[chosen.bf16] * max(1.0, *map(abs, its.losses))  # as the checks have it, of some row's loss
    if chosen.look == "forward later":
        near *= 2  # it adds numbers so small that they may lie just below what a check of a few rows can see
    if len(mine.losses) != len(its.losses):
        return f"{len(mine.losses)} losses, not {len(its.losses)}"
    for step, (a, b) in enumerate(zip(mine.losses[:since], its.losses[:since], strict=True)):
        if not abs(a - b) <= near:
            return f"loss of step {step}: {a:.6f}, not {b:.6f}"
    if since is not None:
        return ""
    for a, b in zip(mine.evaluations, its.evaluations, strict=True):
        if not abs(a - b) <= near:
            return f"evaluation: {a:.6f}, not {b:.6f}"
    if (reason := not_seen(mine.seen, its.seen, near)) is not None:
        return reason
    if mine.names != its.names:
        return f"state_dict has other names: {sorted(set(mine.names) ^ set(its.names))[:3]}"
    if mine.weights.keys() != its.weights.keys():
        return f"other tensors train: {sorted(mine.weights.keys() ^ its.weights.keys())[:3]}"
    start = dict(model_for(chosen).named_parameters())
    moved = {n: float((w - start[n]).norm() if n in start else w.norm()) for n, w in its.weights.items()}
    farthest = max(moved.values())
    for name, weight in its.weights.items():
        away = float((mine.weights[name] - weight).norm())
        allowed = NEAR_STEP[chosen.bf16] * max(moved[name], farthest / 10) + 1e-6 * float(weight.norm())
        if not away <= allowed:
            return f"{name} is {away:.2g} away, and moved by {moved[name]:.2g}"
    return ""


def not_seen(mine: list[tuple[str, float]], its: list[tuple[str, float]], near: float) -> str | None:
    """What a callback saw in plain training and not, in this order, in ours. It may see more: the checks' passes."""
    rest = iter(mine)
    for index, (what, value) in enumerate(its):
        if not any(other == what and abs(own - value) <= 5 * near * max(1.0, abs(value)) for other, own in rest):
            return f"the callback does not see {what} = {value:.6f} (its {index}th of {len(its)}, ours {len(mine)})"
    return None


def short(reason: str) -> str:
    """A reason without its numbers and names, to count it."""
    reason = re.sub(r"its (loss is|gradient of) .*", r"its \1 ...", reason)
    reason = re.sub(r"forward hook (is )?on \S+", r"forward hook \1on ...", reason)
    return re.sub(r"\d[\d.,%]*", "N", reason)[:150]


def quiet() -> None:
    """Only the lines of this script."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="make the run with this number alone, and show its values")
    parser.add_argument("--attach", action="store_true", help="compare a trainer with frostline.attach")
    parser.add_argument("--reason", help="also show the runs that were declined or refused for a reason with this text")
    options = parser.parse_args()
    quiet()
    print_ = transformers.PrinterCallback.on_log
    transformers.PrinterCallback.on_log = lambda *_, **__: None  # its lines of every step
    numbers = range(options.first, options.first + options.runs) if options.only is None else [options.only]
    counts: Counter[str] = Counter()
    declined: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    begun = time.perf_counter()
    gc.freeze()
    for number in numbers:
        chosen = draw(options.seed, number)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FROSTLINE_CACHE"] = f"{folder}/cache"
            if options.only is not None:
                print(chosen)
            try:
                found = run(chosen, Path(folder), options.only is not None, options.attach)
            except Exception as error:
                if options.only is not None:
                    raise
                found = Outcome(wrong=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        reasons = "; ".join([*found.declined, found.refused])
        if options.reason and options.reason in reasons:
            print(f"{number}: {reasons}\n    {chosen}", flush=True)
        if found.wrong:
            counts["wrong"] += 1
            print(f"{number}: {found.wrong}\n    {chosen}\n    {'; '.join(found.declined)[:600]}", flush=True)
        elif not found.trained:
            counts["refused"] += 1
        else:
            counts["equal" if found.compared else "not compared, as a notice says"] += 1
            counts["equal, up to the step from which a notice says that results may differ"] += found.since is not None
            for what in found.used if found.compared else ():
                counts[f"equal, with {what}"] += 1
        declined.update({short(reason) for reason in found.declined})
        refused.update([short(found.refused)] if found.refused else [])
    transformers.PrinterCallback.on_log = print_
    print(f"\n{len(numbers)} runs in {time.perf_counter() - begun:.0f} s")
    for title, found_ in (("", counts), ("Declined, with a notice or a reason:", declined), ("Refused:", refused)):
        print(title, *(f"{count:6} {what}" for what, count in sorted(found_.items(), key=lambda c: -c[1])), sep="\n")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
