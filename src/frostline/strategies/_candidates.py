"""What the planner may choose from: candidates, what each is worth, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, Literal

from pydantic import Field, field_validator

from frostline.core.settings import Options
from frostline.cost import Workload, memory, predict, run_flops, run_seconds
from frostline.plan import Lora, Plan
from frostline.strategies._adapted import adapted_plan
from frostline.strategies._choice import Mode
from frostline.strategies._limits import Resource
from frostline.strategies._plans import freeze_blocks
from frostline.strategies._presets import head_only
from frostline.strategies._situation import Situation
from frostline.strategies._strategy import NoOptions

LORA_RATE = 10.0
Setting = Literal["batch", "checkpointing", "activation_cache"]


class Freedom(Options):
    """What the planner may choose beside the boundary, and what LoRA is worth.

    Attributes:
        modes: how the blocks may train: `full`, `lora`.
        choose: settings of the run that the planner sets: `batch` (with the accumulation that keeps the rows of an
            optimizer step), `checkpointing`, `activation_cache`. Others stay as the run has them.
        lora: the low-rank update, by default at ten times the run's learning rate [inferred].
        lora_worth: what LoRA on a block gains of what training it in full does [inferred].
    """

    modes: tuple[Literal["full", "lora"], ...] = Field(("full", "lora"), min_length=1)
    choose: tuple[Setting, ...] = ("batch", "checkpointing", "activation_cache")
    lora: Lora = Lora(lr_scale=LORA_RATE)
    lora_worth: float = Field(0.3, gt=0, le=1)

    @field_validator("lora", mode="before")
    @classmethod
    def _at_its_own_rate(cls, value: Any) -> Any:
        return {"lr_scale": LORA_RATE, **value} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Way:
    """How a candidate trains, up to its boundary and its batch."""

    mode: Mode
    checkpointing: bool
    activation_cache: bool


@dataclass(frozen=True)
class Candidate:
    """One plan with the settings that belong to it."""

    way: Way
    boundary: int
    batch: int


class Candidates:
    """All that may be chosen in a situation. What a candidate takes is counted when it is first asked for."""

    def __init__(self, situation: Situation, worths: Sequence[float], freedom: Freedom) -> None:
        self._situation, self._worths, self._freedom = situation, worths, freedom
        self._asked = situation.workload
        self._stores = self._with_or_without_store()
        self._batches = self._divisors()
        self.ways = tuple(dict.fromkeys(self._ways()))
        self._plans: dict[tuple[Mode, int], Plan] = {}
        self._uses: dict[tuple[Resource, Candidate], float] = {}

    def ladders(self, way: Way) -> Iterator[list[Candidate]]:
        """The candidates of a way, in lists that go up the blocks with one batch: gain, memory and time fall, and the
        states stored stay the same."""
        for batch, boundaries in product(self._batches, self._stretches(way)):
            yield [Candidate(way, boundary, batch) for boundary in boundaries]

    def gain(self, candidate: Candidate) -> float:
        """The expected gain: 1 for every block that is worth it in full."""
        above = sum(self._worths[candidate.boundary :])
        if above == 0:
            return 0.0
        return above / sum(self._worths) * (self._freedom.lora_worth if candidate.way.mode == "lora" else 1.0)

    def use(self, resource: Resource, candidate: Candidate) -> float:
        """What a candidate takes: peak bytes of a device, the run's seconds (operations without a speed), bytes."""
        key = resource, self._as_counted(resource, candidate)
        if key not in self._uses:
            self._uses[key] = self._count(*key)
        return self._uses[key]

    def rank(self, candidate: Candidate) -> tuple[float, ...]:
        """Sorts the better first: by gain, then by time, then by how little is changed of what was asked."""
        way, ratio = candidate.way, candidate.batch / self._asked.batch
        settings = abs(math.log(ratio)), way.checkpointing, way.activation_cache, -ratio
        return (-self.gain(candidate), self.use("time", candidate), *settings)

    def plan(self, candidate: Candidate) -> Plan:
        """The plan of a candidate."""
        key = candidate.way.mode, candidate.boundary
        if key not in self._plans:
            self._plans[key] = _plan(self._situation, *key, self._freedom.lora)
        return self._plans[key]

    def workload(self, candidate: Candidate) -> Workload:
        """The work as a candidate does it."""
        asked, way = self._asked, candidate.way
        chosen = {
            "batch": candidate.batch,
            "accumulation": asked.batch * asked.accumulation // candidate.batch,
            "checkpointing": way.checkpointing,
            "activation_cache": way.activation_cache,
        }
        return asked.model_copy(update=chosen)

    def _ways(self) -> Iterator[Way]:
        """The ways to train; the head alone has no activations to recompute."""
        chosen = "checkpointing" in self._freedom.choose
        checkpointing = (False, True) if chosen else (self._asked.checkpointing,)
        for mode, recomputes, stored in product(self._freedom.modes, checkpointing, self._stores):
            yield Way(mode, recomputes, stored)
        yield from (Way("head", False, stored) for stored in self._stores)

    def _with_or_without_store(self) -> tuple[bool, ...]:
        """No store where its pass takes rows that training never reaches, nor with rounded frozen blocks."""
        if "activation_cache" not in self._freedom.choose:
            return (self._asked.activation_cache,)
        may_pay = self._asked.epochs >= 1 - self._asked.stored_share and self._asked.frozen_bits is None
        return (False, True) if may_pay else (False,)

    def _divisors(self) -> list[int]:
        """Batches that an optimizer step can be cut into, smallest first; only memory wants another than asked."""
        asked = self._asked
        chosen = "batch" in self._freedom.choose and self._situation.budget.memory is not None
        if not chosen or asked.optimizer_in_backward:
            return [asked.batch]
        rows = asked.batch * asked.accumulation
        return [batch for batch in range(1, rows + 1) if rows % batch == 0]

    def _stretches(self, way: Way) -> list[list[int]]:
        """Boundaries, lowest first, with the same stacks below them, whose states a store holds.

        A block worth nothing is trained only above one that is worth something. With no block below it a store
        changes nothing.
        """
        if way.mode == "head":
            return [[self._situation.blocks]]
        boundaries = [index for index, worth in enumerate(self._worths) if worth > 0]
        if not way.activation_cache:
            return [boundaries] if boundaries else []
        stretches = groupby(boundaries, self._stacks_below)
        return [list(stretch) for stacks, stretch in stretches if stacks]

    def _stacks_below(self, boundary: int) -> frozenset[str]:
        return frozenset(block.stack for block in self._situation.anatomy.blocks[:boundary])

    def _as_counted(self, resource: Resource, candidate: Candidate) -> Candidate:
        """One candidate for all that take as much: states and operations are the rows', in whatever batches."""
        if resource == "memory" or (resource == "time" and self._situation.speed is not None):
            return candidate
        way = replace(candidate.way, checkpointing=False) if resource == "disk" else candidate.way
        return replace(candidate, way=way, batch=self._asked.batch)

    def _count(self, resource: Resource, candidate: Candidate) -> float:
        plan, workload = self.plan(candidate), self.workload(candidate)
        anatomy, speed = self._situation.anatomy, self._situation.speed
        if resource == "memory":
            return memory(plan, anatomy, workload).peak
        if resource == "disk":
            return predict(plan, anatomy, workload).disk_bytes if candidate.way.activation_cache else 0.0
        return run_flops(plan, anatomy, workload) if speed is None else run_seconds(plan, anatomy, workload, speed)


def _plan(situation: Situation, mode: Mode, boundary: int, lora: Lora) -> Plan:
    if mode == "head":
        plan = head_only(situation, NoOptions()).schedule.first
    else:
        plan = freeze_blocks(situation, set(range(boundary)), "auto")
        if mode == "lora":
            plan = adapted_plan(plan, situation, lora, "lora")
    return plan.model_copy(update={"strategy": "auto"})
