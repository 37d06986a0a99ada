"""What the planner may choose from: candidates, what each is worth, and what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from frostline.core.settings import Options
from frostline.cost import Workload, memory, predict, run_flops, run_seconds
from frostline.plan import Lora, Plan
from frostline.strategies._adapted import adapted_plan
from frostline.strategies._choice import AboveMode
from frostline.strategies._limits import Resource
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._presets import head_only
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import NoOptions

LORA_RATE = 10.0
Setting = Literal["per_device_train_batch_size", "activation_checkpointing", "activation_cache"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


class Freedom(Options):
    """What the planner may choose beside the boundary, and what LoRA is worth.

    Attributes:
        modes: how the blocks may train: `full`, `lora`.
        choose: settings of the run that the planner sets: `per_device_train_batch_size` (and with it
            `gradient_accumulation_steps`, so that the rows of an optimizer step stay the same),
            `activation_checkpointing`, `activation_cache`. All other settings stay as the run has them.
        lora: the low-rank update, by default at ten times the run's learning rate [inferred].
        lora_worth: the gain of LoRA on a block, as a share of the gain of training the block in full [inferred].
    """

    modes: tuple[Literal["full", "lora"], ...] = Field(("full", "lora"), min_length=1)
    choose: tuple[Setting, ...] = SETTINGS
    lora: Lora = Lora(lr_scale=LORA_RATE)
    lora_worth: float = Field(0.3, gt=0, le=1)

    @field_validator("lora", mode="before")
    @classmethod
    def _at_its_own_rate(cls, value: Any) -> Any:
        return {"lr_scale": LORA_RATE, **value} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Setup:
    """How a candidate trains, without its boundary and its batch."""

    mode: AboveMode
    activation_checkpointing: bool
    activation_cache: bool


@dataclass(frozen=True)
class Candidate:
    """One plan with the settings that belong to it."""

    setup: Setup
    boundary: int
    per_device_train_batch_size: int


class Candidates:
    """All that may be chosen in a situation. What a candidate needs is predicted when it is first asked for."""

    def __init__(self, situation: Situation, worths: Sequence[float], freedom: Freedom) -> None:
        self._situation, self._worths, self._freedom = situation, worths, freedom
        self._asked = situation.workload
        self._stores = self._with_or_without_store()
        self._batches = self._divisors()
        self.setups = tuple(dict.fromkeys(self._setups()))
        self._plans: dict[tuple[AboveMode, int], Plan] = {}
        self._uses: dict[tuple[Resource, Candidate], float] = {}

    def ladders(self, setup: Setup) -> Iterator[list[Candidate]]:
        """The candidates of a setup, in lists of one batch size that go up the blocks.

        Along a list gain, memory and time fall, and the stored states stay the same.
        """
        for batch, boundaries in product(self._batches, self._stretches(setup)):
            yield [Candidate(setup, boundary, batch) for boundary in boundaries]

    def gain(self, candidate: Candidate) -> float:
        """The expected gain: 1 for training every block in full."""
        above = sum(self._worths[candidate.boundary :])
        if above == 0:
            return 0.0
        return above / sum(self._worths) * (self._freedom.lora_worth if candidate.setup.mode == "lora" else 1.0)

    def use(self, resource: Resource, candidate: Candidate) -> float:
        """What a candidate needs: peak bytes of a device, seconds (operations without a speed), bytes on disk."""
        key = resource, self._as_counted(resource, candidate)
        if key not in self._uses:
            self._uses[key] = self._count(*key)
        return self._uses[key]

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Sorts the better first: by gain, then by time, then by how little is changed of what was asked."""
        setup, ratio = candidate.setup, candidate.per_device_train_batch_size / self._asked.per_device_train_batch_size
        settings = abs(math.log(ratio)), setup.activation_checkpointing, setup.activation_cache, -ratio
        return (-self.gain(candidate), self.use("time", candidate), *settings)

    def plan(self, candidate: Candidate) -> Plan:
        """The plan of a candidate."""
        key = candidate.setup.mode, candidate.boundary
        if key not in self._plans:
            self._plans[key] = _plan(self._situation, *key, self._freedom.lora)
        return self._plans[key]

    def workload(self, candidate: Candidate) -> Workload:
        """The work as a candidate does it."""
        setup, batch = candidate.setup, candidate.per_device_train_batch_size
        chosen = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": self._rows // batch,
            "activation_checkpointing": setup.activation_checkpointing,
            "activation_cache": setup.activation_cache,
        }
        return self._asked.model_copy(update=chosen)

    @property
    def _rows(self) -> int:
        """The rows of an optimizer step on one device, which the planner keeps."""
        return self._asked.per_device_train_batch_size * self._asked.gradient_accumulation_steps

    def _setups(self) -> Iterator[Setup]:
        """All setups; the head alone has no activations to recompute."""
        chosen = "activation_checkpointing" in self._freedom.choose
        checkpointing = (False, True) if chosen else (self._asked.activation_checkpointing,)
        for mode, recomputes, stored in product(self._freedom.modes, checkpointing, self._stores):
            yield Setup(mode, recomputes, stored)
        yield from (Setup("head", False, stored) for stored in self._stores)

    def _with_or_without_store(self) -> tuple[bool, ...]:
        """No activation cache with quantized blocks, nor where training never reaches all of its rows."""
        if "activation_cache" not in self._freedom.choose:
            return (self._asked.activation_cache,)
        may_pay = self._asked.num_train_epochs >= 1 - self._asked.stored_share and self._asked.frozen_bits is None
        return (False, True) if may_pay else (False,)

    def _divisors(self) -> list[int]:
        """Batch sizes that divide the rows of an optimizer step, smallest first; with no memory limit the run's own."""
        asked = self._asked
        chosen = "per_device_train_batch_size" in self._freedom.choose and self._situation.budget.memory is not None
        if not chosen or asked.optimizer_in_backward:
            return [asked.per_device_train_batch_size]
        return [batch for batch in range(1, self._rows + 1) if self._rows % batch == 0]

    def _stretches(self, setup: Setup) -> list[list[int]]:
        """Boundaries, lowest first, in lists with the same stacks below them, whose states an activation cache holds.

        A block worth nothing is trained only above one that is worth something. Where no block is below the boundary,
        an activation cache changes nothing.
        """
        if setup.mode == "head":
            return [[self._situation.blocks]]
        boundaries = [index for index, worth in enumerate(self._worths) if worth > 0]
        if not setup.activation_cache:
            return [boundaries] if boundaries else []
        stretches = groupby(boundaries, self._stacks_below)
        return [list(stretch) for stacks, stretch in stretches if stacks]

    def _stacks_below(self, boundary: int) -> frozenset[str]:
        return frozenset(block.stack for block in self._situation.anatomy.blocks[:boundary])

    def _as_counted(self, resource: Resource, candidate: Candidate) -> Candidate:
        """One candidate for all that need as much: stored states and operations do not depend on the batch size."""
        if resource == "memory" or (resource == "time" and self._situation.speed is not None):
            return candidate
        setup = candidate.setup
        if resource == "disk":
            setup = replace(setup, activation_checkpointing=False)
        asked = self._asked.per_device_train_batch_size
        return replace(candidate, setup=setup, per_device_train_batch_size=asked)

    def _count(self, resource: Resource, candidate: Candidate) -> float:
        plan, workload = self.plan(candidate), self.workload(candidate)
        anatomy, speed = self._situation.anatomy, self._situation.speed
        if resource == "memory":
            return memory(plan, anatomy, workload).peak
        if resource == "disk":
            return predict(plan, anatomy, workload).disk_bytes if candidate.setup.activation_cache else 0.0
        return run_flops(plan, anatomy, workload) if speed is None else run_seconds(plan, anatomy, workload, speed)


def _plan(situation: Situation, mode: AboveMode, boundary: int, lora: Lora) -> Plan:
    if mode == "head":
        plan = head_only(situation, NoOptions()).schedule.first
    else:
        plan = freeze_blocks(situation, set(range(boundary)), "auto")
        if mode == "lora":
            plan = adapted_plan(plan, situation, lora, "lora")
    return plan.model_copy(update={"strategy": "auto"})
