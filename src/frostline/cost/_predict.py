"""What a plan will cost, beside full fine-tuning, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frostline.anatomy import Anatomy
from frostline.cost._bottom import bytes_on_disk
from frostline.cost._flops import flops_ratio, run_flops, run_flops_ratio
from frostline.cost._flow import flow
from frostline.cost._memory import Memory, memory
from frostline.cost._parameters import full_plan, total_parameters, trainable_parameters
from frostline.cost._speed import Speed, run_seconds
from frostline.cost._workload import Workload
from frostline.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a plan.

    Ratios compare with full fine-tuning of the same model on the same workload, without an activation cache and with
    every position computed.

    Attributes:
        trainable_parameters: exact.
        total_parameters: exact.
        flops_ratio: operations of a step.
        run_flops: operations of the run, of all devices together.
        run_flops_ratio: the same as a ratio; the caching pass is included, if there is one.
        run_seconds: seconds of the run with its caching pass; None without a speed.
        time_ratio: the same as a ratio; None without a speed.
        memory_ratio: peak memory of a device.
        memory: of one device, in bytes by part.
        disk_bytes: the activation cache when all rows are in it, of all devices together.
        assumes: the workload.
    """

    trainable_parameters: int
    total_parameters: int
    flops_ratio: float
    run_flops: float
    run_flops_ratio: float
    run_seconds: float | None
    time_ratio: float | None
    memory_ratio: float
    memory: Memory
    disk_bytes: int
    assumes: Mapping[str, Any]

    @property
    def peak_memory_bytes(self) -> int:
        return self.memory.peak

    def document(self) -> dict[str, Any]:
        """The prediction as plain data, without parameters and workload, which a record has elsewhere."""
        return {
            "flops_ratio": round(self.flops_ratio, 6),
            "run_flops": round(self.run_flops),
            "run_flops_ratio": round(self.run_flops_ratio, 6),
            "run_seconds": _rounded(self.run_seconds),
            "time_ratio": _rounded(self.time_ratio),
            "peak_memory_bytes": self.peak_memory_bytes,
            "memory_ratio": round(self.memory_ratio, 6),
            "memory_bytes": asdict(self.memory),
            "disk_bytes": self.disk_bytes,
        }


def predict(plan: Plan, anatomy: Anatomy, workload: Workload, speed: Speed | None = None) -> Prediction:
    """The cost of training a model under a plan. It needs no weights.

    The formulas, and what they leave out, are in `_flops`, `_activations`, `_memory` and `_speed`.

    Args:
        plan: what trains.
        anatomy: of the model, which may be on the meta device.
        workload: the work.
        speed: the speed that was calibrated for this workload.

    Raises `PlanError` when the plan does not fit the anatomy.
    """
    seconds = ratio = None
    if speed is not None:
        seconds = run_seconds(plan, anatomy, workload, speed)
        ratio = seconds / run_seconds(full_plan(anatomy), anatomy, workload.plain, speed)
    own = memory(plan, anatomy, workload)
    full = memory(full_plan(anatomy), anatomy, workload.plain)
    return Prediction(
        trainable_parameters=trainable_parameters(plan, anatomy),
        total_parameters=total_parameters(plan, anatomy),
        flops_ratio=flops_ratio(plan, anatomy, workload),
        run_flops=run_flops(plan, anatomy, workload),
        run_flops_ratio=run_flops_ratio(plan, anatomy, workload),
        run_seconds=seconds,
        time_ratio=ratio,
        memory_ratio=own.peak / full.peak,
        memory=own,
        disk_bytes=bytes_on_disk(flow(plan, anatomy), workload) if workload.activation_cache else 0,
        assumes=workload.model_dump(mode="json"),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
