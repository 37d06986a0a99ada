"""Judge a training by rows that it does not see, while it runs: what trials and the runs that come of them need."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from frostline.bottom import Training
from frostline.core.seeding import derive_seed
from frostline.engine import Trainer
from frostline.hooks import state_kept
from frostline.processes import running
from frostline.rows import some_of
from frostline.run._work import Data
from frostline.strategies import has_turned
from frostline.tasks import Encoded

FEWEST_ROWS = 160
"""A training split with fewer rows has none to hold out."""
Clock = Callable[[], float]


def wall_time() -> float:
    """Seconds; of several processes, those of the first, so that all decide alike."""
    return running().same(time.perf_counter())


def processor_time() -> float:
    """Seconds of all threads; of several processes, those of the first."""
    return running().same(time.process_time())


def clock_of(duration: bool) -> Clock:
    """The clock of a budget: processor time; wall time on an accelerator and for a duration."""
    return wall_time if duration or torch.accelerator.is_available() else processor_time


def hold_out(data: Data, seed: int, from_eval: bool = False) -> Data:
    """The data with a twentieth of the training rows (at most 128) set aside; each class gives its share.

    Args:
        data: the run's rows.
        seed: the run's seed.
        from_eval: take them from the evaluation split, and leave the training rows as they are.
    """
    rows = data.eval_rows if from_eval else data.rows
    count = min(128, len(rows) if from_eval else len(rows) // 20)
    order = list(range(len(rows)))
    random.Random(derive_seed(seed, "held out")).shuffle(order)
    groups: dict[Any, list[int]] = defaultdict(list)
    labels = [label if isinstance(label := row.get("labels"), int) else None for row in rows.rows]
    for index in order:
        groups[labels[index]].append(index)
    spread = sorted((place / len(group), index) for group in groups.values() for place, index in enumerate(group))
    held = {index for _, index in spread[:count]}
    aside = Encoded(some_of(rows.rows, sorted(held)), 0)
    if from_eval:
        return replace(data, held_out=aside)
    rest = Encoded(some_of(rows.rows, [index for index in range(len(rows)) if index not in held]), rows.truncated)
    return replace(data, rows=rest, held_out=aside)


class JudgedTrainer(Trainer):
    """A trainer with held-out rows, whose states are cached with those of the training rows.

    Attributes:
        held_out: the rows that it is judged by.
        first_steps: only the rows of the first so many steps pass the frozen bottom before training; None: all rows.
        clock: what tells the time.
        tokens: how many tokens each step had, padding included.
        opening_seconds: the time that the activation cache was opened in.
    """

    held_out: Any
    first_steps: int | None = None
    clock: Clock = staticmethod(processor_time)
    opening_seconds = 0.0

    def __init__(self, *given: Any, **options: Any) -> None:
        self.tokens: defaultdict[int, int] = defaultdict(int)
        super().__init__(*given, **options)

    def judge(self) -> float:
        """The loss on the held-out rows. Training goes on as if it had not been asked for."""
        with state_kept(device=self.args.device):
            found = self.evaluate(self.held_out, metric_key_prefix="held_out")
        return float(found["held_out_loss"])

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.tokens[self.state.global_step] += inputs["input_ids"].numel()
        return super().training_step(model, inputs, num_items_in_batch)

    def _training(self) -> Training:
        found = super()._training()
        first, *others = found.datasets
        if self.first_steps is None:
            return replace(found, datasets=[first, self.held_out, *others])
        return replace(found, datasets=[list(self._first_rows()), self.held_out], estimate=None)

    def _first_rows(self) -> Iterable[Any]:
        assert self.first_steps is not None
        args, rows = self.args, self.train_dataset
        group = running()
        count = self.first_steps * args.train_batch_size * args.gradient_accumulation_steps * group.count
        if count >= len(rows):
            return list(rows)
        with state_kept(device=args.device):
            loader: Any = self.get_train_dataloader()
            own = [index for batch in islice(iter(loader.batch_sampler), count) for index in batch]
        own = own[: count // group.count]
        order = [index for part in group.every(own) for index in part]
        return [rows[index] for index in order[:count]]

    def _init_training_state(self, max_steps: int, *rest: Any) -> tuple[int, int]:
        found = super()._init_training_state(max_steps, *rest)
        self.state.compute_steps(self.args, max_steps)  # a trial's checkpoint has those of the trial
        return found

    def _check_again(self, step: int, *, last: bool = False) -> None:
        if self.first_steps is None:  # in a trial, which is short, the check at its start is enough
            super()._check_again(step, last=last)

    def _begin_plan(self) -> None:
        begun = self.clock()
        super()._begin_plan()
        self.opening_seconds += self.clock() - begun


class Pause(TrainerCallback):
    """Ends a trial: it is judged at some steps, and saved and stopped at the last of them.

    Args:
        trainer: what is tried.
        stops: gives the steps at which it is judged, from the seconds of a step.
        step_seconds: the seconds of a step; None: they are measured in the first steps.
        step_tokens: tokens of a step, the mean over the rows.
    """

    MEASURED = 4
    """Steps that are measured, the first of them left out."""

    def __init__(
        self,
        trainer: JudgedTrainer,
        stops: Callable[[float], list[int]],
        step_seconds: float | None,
        step_tokens: float,
    ) -> None:
        self._trainer, self._stops, self._step_tokens = trainer, stops, step_tokens
        self.step_seconds = step_seconds
        self._at = stops(step_seconds) if step_seconds is not None else []
        self._seconds: list[float] = []
        self._tokens: list[int] = []
        self._begun = 0.0
        self.losses: dict[int, float] = {}
        self.judging_seconds = 0.0

    @property
    def median(self) -> float:
        """Seconds of a step with as many tokens as the mean; the first step and checks between steps do not count."""
        each = [time / tokens for time, tokens in zip(self._seconds[1:], self._tokens[1:], strict=True)]
        return statistics.median(each) * self._step_tokens

    @property
    def stepping_seconds(self) -> float:
        """The seconds of all steps together."""
        return sum(self._seconds)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = self._trainer.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._seconds.append(self._trainer.clock() - self._begun)
        self._tokens.append(sum(running().every(self._trainer.tokens[state.global_step - 1])))
        if self.step_seconds is None and len(self._seconds) == self.MEASURED:
            self.step_seconds = self.median
            self._at = self._stops(self.step_seconds)
        if state.global_step in self._at:
            begun = self._trainer.clock()
            self.losses[state.global_step] = self._trainer.judge()
            self.judging_seconds += self._trainer.clock() - begun
        if self._at and state.global_step >= self._at[-1]:
            control.should_save = control.should_training_stop = True


class Watch(TrainerCallback):
    """Judges a run while its rate is held, and stops it where the loss has turned. Only checkpoints that count stay.

    Args:
        trainer: what trains.
        steps: when it is judged.
        keep: how many of the last checkpoints the user wants; None: all.
    """

    def __init__(self, trainer: JudgedTrainer, steps: Iterable[int], keep: int | None) -> None:
        self._trainer, self._steps, self._keep = trainer, frozenset(steps), keep
        self.losses: dict[int, float] = {}
        self.turned = False

    @property
    def best(self) -> int:
        """The step with the lowest loss."""
        return min(self.losses, key=lambda step: self.losses[step])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before = (entry for entry in state.log_history if "held_out_loss" in entry)
        self.losses = {int(entry["step"]): float(entry["held_out_loss"]) for entry in before}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self._steps:
            self.losses[state.global_step] = self._trainer.judge()
            self.turned = has_turned(list(self.losses.values()))
            control.should_save = True
            control.should_training_stop = control.should_training_stop or self.turned

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._keep is not None and self.losses and args.should_save:
            drop_checkpoints(Path(args.output_dir), max(1, self._keep), self.best)


def drop_checkpoints(folder: Path, keep: int, step: int | None = None) -> None:
    """Remove checkpoints, but the last `keep` of them, and that of a step."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found[: len(found) - keep]:
        if path.name != f"checkpoint-{step}":
            shutil.rmtree(path, ignore_errors=True)
