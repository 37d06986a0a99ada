"""A budget in absolute numbers: bytes, and seconds or operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from frostline.core.errors import ConfigError
from frostline.core.sizes import parse_duration, parse_size
from frostline.cost import full_plan, memory, run_flops, run_seconds
from frostline.strategies._situation import Situation

Resource = Literal["memory", "time", "disk"]


@dataclass(frozen=True)
class Yardstick:
    """What full fine-tuning needs for the workload as it was asked for: peak bytes of a device, and seconds of the run
    (operations without a speed)."""

    memory: float
    time: float

    @classmethod
    def of(cls, situation: Situation) -> Yardstick:
        anatomy, workload, speed = situation.anatomy, situation.workload.plain, situation.speed
        full = full_plan(anatomy)
        run = run_flops(full, anatomy, workload) if speed is None else run_seconds(full, anatomy, workload, speed)
        return cls(memory(full, anatomy, workload).peak, run)


@dataclass(frozen=True)
class Limit:
    """The most that a plan may use of one resource: `amount`, written as `asked`.

    `whole` is what full fine-tuning needs, where the limit is a share of that; else None.
    """

    resource: Resource
    asked: str
    amount: float
    whole: float | None = None

    def __str__(self) -> str:
        return f"{self.resource}={self.asked}"

    def text(self, amount: float, *, enough: bool = False) -> str:
        """An amount in three figures, written as a limit is: a share, a size, a duration; `enough` rounds it up."""
        rounded = _up if enough else _nearest
        if self.whole is not None:
            return f"{rounded(amount / self.whole):g}"
        unit, size = next((unit, size) for unit, size in _UNITS[self.resource] if amount >= size or size == 1)
        return f"{rounded(amount / size):g}{unit}"


def limits(situation: Situation, whole: Yardstick) -> tuple[Limit, ...]:
    """The budget's limits; those that are predicted fastest come first.

    Raises `ConfigError` for a duration on a machine that is not calibrated.
    """
    return tuple(_limits(situation, whole))


def _limits(situation: Situation, whole: Yardstick) -> Iterator[Limit]:
    budget = situation.budget
    if isinstance(budget.memory, float):
        yield Limit("memory", f"{budget.memory:g}", budget.memory * whole.memory, whole.memory)
    elif budget.memory is not None:
        yield Limit("memory", budget.memory, parse_size(budget.memory, "memory"))
    if isinstance(budget.time, float):
        yield Limit("time", f"{budget.time:g}", budget.time * whole.time, whole.time)
    elif budget.time is not None:
        if situation.speed is None:
            raise ConfigError(
                f"budget: time={budget.time} needs the speed of this machine: use calibrate=true (frostline "
                "plan: --calibrate), or give a share of full fine-tuning's time, such as time=0.4"
            )
        yield Limit("time", budget.time, parse_duration(budget.time, "time"))
    if budget.disk is not None:
        yield Limit("disk", budget.disk, parse_size(budget.disk, "disk"))


def _nearest(value: float) -> float:
    return float(f"{value:.3g}")


def _up(value: float) -> float:
    """The next number of three figures."""
    near = _nearest(value)
    return near if near >= value else _nearest(near + 10.0 ** (math.floor(math.log10(value)) - 2))


_BYTES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))
_UNITS = {"memory": _BYTES, "disk": _BYTES, "time": (("h", 3600), ("min", 60), ("s", 1))}
