"""What the planner may choose from: candidates, what each is worth, and what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from frostline.core.settings import Options
from frostline.cost import Workload, evaluation_memory, memory, predict, run_flops, run_seconds
from frostline.plan import Full, Lora, Plan
from frostline.strategies._adapted import adapted_plan
from frostline.strategies._choice import AboveMode
from frostline.strategies._limits import Resource
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._presets import all_layers, head_only
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import NoOptions
from frostline.strategies._worth import LORA_WORTH, PASSES, TIED_WORTH, learned, of_share

LORA_RATE = 3.0
Setting = Literal["per_device_train_batch_size", "activation_checkpointing", "activation_cache"]
_TIMES = {"one pass": 1.0, "two passes": 2.0}
SETTINGS: tuple[Setting, ...] = get_args(Setting)


class Freedom(Options):
    """What the planner may choose beside the boundary, and what LoRA is worth.

    Attributes:
        modes: how the blocks may train: `full`, `lora`.
        choose: settings of the run that the planner sets: `per_device_train_batch_size` (and with it
            `gradient_accumulation_steps`, so that the rows of an optimizer step stay the same),
            `activation_checkpointing`, `activation_cache`. All other settings stay as the run has them.
        lora: the low-rank update, by default on all matrices of a block, at three times the run's learning rate.
        lora_worth: the gain of LoRA on blocks, as a share of the gain of training them in full.
    """

    modes: tuple[Literal["full", "lora"], ...] = Field(("full", "lora"), min_length=1)
    choose: tuple[Setting, ...] = SETTINGS
    lora: Lora = Lora(targets="all", lr_scale=LORA_RATE)
    lora_worth: float = Field(LORA_WORTH, gt=0, le=1)

    @field_validator("lora", mode="before")
    @classmethod
    def _at_its_own_rate(cls, value: Any) -> Any:
        return {"targets": "all", "lr_scale": LORA_RATE, **value} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Setup:
    """How a candidate trains, without its boundary and its batch; with `untie` a tied head trains a copy of its own."""

    mode: AboveMode
    activation_checkpointing: bool
    activation_cache: bool
    untie: bool = False


@dataclass(frozen=True)
class Candidate:
    """One plan with the settings that belong to it."""

    setup: Setup
    boundary: int
    per_device_train_batch_size: int


class Candidates:
    """All that may be chosen in a situation. What a candidate needs is predicted when it is first asked for.

    Args:
        situation: the model, the budget and the workload.
        worths: of each block, compared with the others.
        freedom: what may be chosen.
        time: the time that each candidate spends on as many passes over the rows as it pays for, in seconds (operations
            without a speed); None: each makes the passes of the workload.
    """

    def __init__(
        self, situation: Situation, worths: Sequence[float], freedom: Freedom, time: float | None = None
    ) -> None:
        self._situation, self._worths, self._freedom, self.time = situation, worths, freedom, time
        self._asked = situation.workload
        self._stores = self._with_or_without_store()
        self._batches = batches(situation, "per_device_train_batch_size" in freedom.choose)
        self.setups = tuple(dict.fromkeys(self._setups()))
        self._plans: dict[tuple[AboveMode, int, bool], Plan] = {}
        self._uses: dict[tuple[str, Candidate], float] = {}
        self._evaluating: dict[tuple[AboveMode, int, bool], int] = {}

    def spending(self, time: float | None) -> Candidates:
        """The same candidates with another time to spend; what was predicted stays known."""
        other = copy(self)
        other.time = time
        return other

    def ladders(self, setup: Setup) -> Iterator[list[Candidate]]:
        """The candidates of a setup, in lists of one batch size that go up the blocks.

        Along a list memory and the time of a step fall, and the stored states stay the same.
        """
        for batch, boundaries in product(self._batches, self._stretches(setup)):
            yield [Candidate(setup, boundary, batch) for boundary in boundaries]

    def gain(self, candidate: Candidate) -> float:
        """The expected gain: 1 for training every block in full."""
        above, setup = sum(self._worths[candidate.boundary :]), candidate.setup
        if above == 0:
            return 0.0
        worth = self._freedom.lora_worth if setup.mode == "lora" else 1.0
        if self._situation.anatomy.tied and not (setup.untie or self.whole(candidate)):
            worth *= TIED_WORTH
        worth *= of_share(above / sum(self._worths), self._situation.anatomy.has_lm_head)
        return worth if self.time is None else worth * learned(self.passes(candidate))

    def passes(self, candidate: Candidate) -> float:
        """Passes over the rows: those asked for, or as many as the time pays for and make the model better."""
        if self.time is None:
            return self._asked.num_train_epochs
        start, each = self._start_and_pass(candidate)
        return max(0.0, min(PASSES, (self.time - start) / each))

    def use(self, resource: Resource, candidate: Candidate) -> float:
        """What a candidate needs: peak bytes of a device, bytes on disk, seconds (operations without a speed).

        Where the time is to be spent, the least time that it needs: with one optimizer step.
        """
        if resource == "time":
            start, each = self._start_and_pass(candidate)
            steps = self._asked.num_train_epochs if self.time is None else min(1.0, self._rows / self._asked.rows)
            return start + each * steps
        return self._known(resource, candidate)

    def taken(self, candidate: Candidate) -> float:
        """The time of all its passes, in seconds (operations without a speed)."""
        start, each = self._start_and_pass(candidate)
        return start + each * self.passes(candidate)

    def _start_and_pass(self, candidate: Candidate) -> tuple[float, float]:
        """The time before the first step, and that of a pass over the rows."""
        one, two = (self._known(resource, candidate) for resource in _TIMES)
        return 2 * one - two, two - one

    def _known(self, resource: str, candidate: Candidate) -> float:
        key = resource, self._as_counted(resource, candidate)
        if key not in self._uses:
            self._uses[key] = self._count(*key)
        return self._uses[key]

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Sorts the better first: by gain, then by time, then by how little is changed of what was asked."""
        setup, ratio = candidate.setup, candidate.per_device_train_batch_size / self._asked.per_device_train_batch_size
        settings = abs(math.log(ratio)), setup.activation_checkpointing, setup.activation_cache, -ratio
        return (-self.gain(candidate), self.taken(candidate), *settings)

    def evaluation(self, candidate: Candidate) -> int:
        """Peak bytes of the evaluation that has to fit too: the same for all batches and settings of a plan."""
        work, key = self._situation.evaluation, _key(candidate)
        if work is None:
            return 0
        if key not in self._evaluating:
            plan, workload = self.plan(candidate), self._work(candidate, 1.0)
            self._evaluating[key] = evaluation_memory(plan, self._situation.anatomy, workload, work)
        return self._evaluating[key]

    def plan(self, candidate: Candidate) -> Plan:
        """The plan of a candidate."""
        key = _key(candidate)
        if key not in self._plans:
            self._plans[key] = _plan(self._situation, *key, self._freedom.lora)
        return self._plans[key]

    def whole(self, candidate: Candidate) -> bool:
        """Whether a candidate is full fine-tuning, the embeddings included."""
        return candidate.boundary == 0 and candidate.setup.mode == "full"

    def workload(self, candidate: Candidate) -> Workload:
        """The work as a candidate does it."""
        return self._work(candidate, self.passes(candidate))

    def _work(self, candidate: Candidate, passes: float) -> Workload:
        setup, batch = candidate.setup, candidate.per_device_train_batch_size
        work = with_settings(self._asked, batch, setup.activation_checkpointing, setup.activation_cache)
        return work.model_copy(update={"num_train_epochs": passes})

    @property
    def _rows(self) -> int:
        """The rows of an optimizer step on one device, which the planner keeps."""
        return rows_of_a_step(self._asked)

    def _setups(self) -> Iterator[Setup]:
        """All setups; the head alone has no activations to recompute."""
        chosen = "activation_checkpointing" in self._freedom.choose
        checkpointing = (False, True) if chosen else (self._asked.activation_checkpointing,)
        tied, keeps = self._situation.anatomy.tied, "untie" in self._situation.decided
        untie = (False, True) if tied and not keeps else (False,)
        for mode, recomputes, stored, unties in product(self._freedom.modes, checkpointing, self._stores, untie):
            yield Setup(mode, recomputes, stored, unties)
        if not (tied and keeps):
            yield from (Setup("head", False, stored) for stored in self._stores)

    def _with_or_without_store(self) -> tuple[bool, ...]:
        """No activation cache with quantized blocks, nor where training never reaches all of its rows."""
        if "activation_cache" not in self._freedom.choose:
            return (self._asked.activation_cache,)
        spent = self.time is not None  # then the passes show whether it pays
        may_pay = spent or self._asked.num_train_epochs >= 1 - self._asked.stored_share
        may_pay = may_pay and self._asked.frozen_bits is None
        return (False, True) if may_pay else (False,)

    def _stretches(self, setup: Setup) -> list[list[int]]:
        """Boundaries, lowest first, in lists with the same stacks below them, whose states an activation cache holds.

        A block worth nothing is trained only above one that is worth something. Where no block is below the boundary,
        an activation cache changes nothing.
        """
        if setup.mode == "head":
            return [[self._situation.blocks]]
        boundaries = [index for index, worth in enumerate(self._worths) if worth > 0]
        if setup.mode == "full" and (setup.untie or self._asked.frozen_bits):
            # In full fine-tuning head and embeddings train as one, and there is nothing to quantize.
            boundaries = [index for index in boundaries if index > 0]
        if not setup.activation_cache:
            return [boundaries] if boundaries else []
        stretches = groupby(boundaries, self._stacks_below)
        return [list(stretch) for stacks, stretch in stretches if stacks]

    def _stacks_below(self, boundary: int) -> frozenset[str]:
        return frozenset(block.stack for block in self._situation.anatomy.blocks[:boundary])

    def _as_counted(self, resource: str, candidate: Candidate) -> Candidate:
        """One candidate for all that need as much: stored states and operations do not depend on the batch size."""
        if resource == "memory" or (resource in _TIMES and self._situation.speed is not None):
            return candidate
        setup = candidate.setup
        if resource == "disk":
            setup = replace(setup, activation_checkpointing=False)
        asked = self._asked.per_device_train_batch_size
        return replace(candidate, setup=setup, per_device_train_batch_size=asked)

    def _count(self, resource: str, candidate: Candidate) -> float:
        plan, workload = self.plan(candidate), self._work(candidate, _TIMES.get(resource, 1.0))
        anatomy, speed = self._situation.anatomy, self._situation.speed
        if resource == "memory":
            return max(memory(plan, anatomy, workload).peak, self.evaluation(candidate))
        if resource == "disk":
            return predict(plan, anatomy, workload).disk_bytes if candidate.setup.activation_cache else 0.0
        return run_flops(plan, anatomy, workload) if speed is None else run_seconds(plan, anatomy, workload, speed)


def rows_of_a_step(work: Workload) -> int:
    """The rows of an optimizer step on one device, which a planner keeps."""
    return work.per_device_train_batch_size * work.gradient_accumulation_steps


def batches(situation: Situation, chosen: bool) -> list[int]:
    """Batch sizes that divide the rows of an optimizer step, smallest first; with no memory limit the run's own.

    Args:
        situation: the budget and the workload.
        chosen: whether the batch may be chosen.
    """
    asked, rows = situation.workload, rows_of_a_step(situation.workload)
    if not chosen or situation.budget.memory is None or asked.optimizer_in_backward:
        return [asked.per_device_train_batch_size]
    return [batch for batch in range(1, rows + 1) if rows % batch == 0]


def with_settings(asked: Workload, batch: int, recomputes: bool, stored: bool) -> Workload:
    """The workload in batches of another size, with as many rows in an optimizer step.

    Args:
        asked: the workload as it was asked for.
        batch: rows of a batch of one device.
        recomputes: with activation checkpointing.
        stored: with an activation cache.
    """
    chosen = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows_of_a_step(asked) // batch,
        "activation_checkpointing": recomputes,
        "activation_cache": stored,
    }
    return asked.model_copy(update=chosen)


def _key(candidate: Candidate) -> tuple[AboveMode, int, bool]:
    return candidate.setup.mode, candidate.boundary, candidate.setup.untie


def _plan(situation: Situation, mode: AboveMode, boundary: int, untie: bool, lora: Lora) -> Plan:
    if mode == "head":
        plan = head_only(situation, NoOptions()).schedule.first
    elif mode == "full" and boundary == 0:
        plan = all_layers(situation, NoOptions()).schedule.first
    else:
        plan = freeze_blocks(situation, set(range(boundary)), "auto")
        if mode == "lora":
            plan = adapted_plan(plan, situation, lora, "lora", f"{plan.strategy}+lora")
    own_head = {"untie": True, "head": Full()} if untie else {}
    return plan.model_copy(update={"strategy": "auto", **own_head})
