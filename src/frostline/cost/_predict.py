"""What a plan will cost, beside full fine-tuning, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frostline.anatomy import Anatomy
from frostline.cost._flops import flops_ratio, run_flops_ratio
from frostline.cost._memory import Memory, memory
from frostline.cost._parameters import full_plan, total_parameters, trainable_parameters
from frostline.cost._workload import Workload
from frostline.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a plan. Ratios are to full fine-tuning of the same model on the same workload, without
    a cold store and with every position computed. `run_flops_ratio` includes the cold pass, if there is one.

    Parameters are exact. `time_ratio` is None until speed has been calibrated on this machine. `memory` is
    in bytes by part; `assumes` is the workload.
    """

    trainable_parameters: int
    total_parameters: int
    flops_ratio: float
    run_flops_ratio: float
    time_ratio: float | None
    memory_ratio: float
    memory: Memory
    assumes: Mapping[str, Any]

    @property
    def peak_memory_bytes(self) -> int:
        return self.memory.peak

    def document(self) -> dict[str, Any]:
        """The prediction as plain data, without parameters and workload, which stand beside it."""
        return {
            "flops_ratio": round(self.flops_ratio, 6),
            "run_flops_ratio": round(self.run_flops_ratio, 6),
            "time_ratio": self.time_ratio,
            "peak_memory_bytes": self.peak_memory_bytes,
            "memory_ratio": round(self.memory_ratio, 6),
            "memory_bytes": asdict(self.memory),
        }


def predict(plan: Plan, anatomy: Anatomy, workload: Workload) -> Prediction:
    """The cost of training `anatomy`'s model under `plan` on `workload`.

    Needs no weights: the anatomy of a model on the meta device will do. Formulas and what they leave out are
    in `_flops`, `_activations` and `_memory`. Raises `UserError` when the plan does not fit the anatomy.
    """
    own = memory(plan, anatomy, workload)
    full = memory(full_plan(anatomy), anatomy, workload.plain)
    return Prediction(
        trainable_parameters=trainable_parameters(plan, anatomy),
        total_parameters=total_parameters(plan, anatomy),
        flops_ratio=flops_ratio(plan, anatomy, workload),
        run_flops_ratio=run_flops_ratio(plan, anatomy, workload),
        time_ratio=None,
        memory_ratio=own.peak / full.peak,
        memory=own,
        assumes=workload.model_dump(mode="json"),
    )
