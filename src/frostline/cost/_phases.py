"""The predicted cost of a schedule: that of each of its plans, for as many steps as it trains.

With an activation cache, the states lie at the lowest boundary of all plans from now on. Each time that this boundary
rises, all rows pass the blocks between the two once. Of many plans (draws), some at equal distances are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from frostline.anatomy import Anatomy
from frostline.cost._bottom import bytes_on_disk
from frostline.cost._cache import cut_at
from frostline.cost._flops import bottom_flops, step_flops
from frostline.cost._flow import flow
from frostline.cost._parameters import full_plan
from frostline.cost._predict import Prediction, predict
from frostline.cost._speed import Speed, run_seconds, step_seconds
from frostline.cost._workload import Workload
from frostline.plan import Plan

MOST = 128
"""So many plans of a schedule are counted at most."""


@dataclass(frozen=True)
class _Phase:
    """Some steps under one plan; `cut` is where the states lie, 0 without a cache."""

    plan: Plan
    steps: int
    cut: int


def predict_phases(
    plans: Sequence[tuple[int, Plan]], steps: int, anatomy: Anatomy, workload: Workload, speed: Speed | None = None
) -> Prediction:
    """The cost of training under plans that follow each other. Memory and trained parameters are those of the largest.

    Args:
        plans: each with its first step, from step 0 on.
        steps: optimizer steps of the training.
        anatomy: of the model.
        workload: the work.
        speed: the speed that was calibrated for this workload.

    Raises `PlanError` when a plan does not fit the anatomy.
    """
    plain = workload.model_copy(update={"activation_cache": False})
    found = _phases(_some(plans, steps), cached=workload.activation_cache)
    if len(found) == 1:
        return predict(found[0].plan, anatomy, workload, speed)
    total = sum(phase.steps for phase in found)
    batches = workload.rows / workload.per_device_train_batch_size
    spared = {
        cut: bottom_flops(cut_at(full_plan(anatomy), cut), anatomy, plain) for cut in {p.cut for p in found} - {0}
    }
    spared[0] = 0.0
    a_step, seconds, largest = 0.0, 0.0, None
    for phase in found:
        whole = step_flops(phase.plan, anatomy, plain).total
        own = whole - spared[phase.cut] / batches
        a_step += own * phase.steps / total
        if speed is not None:
            seconds += step_seconds(phase.plan, anatomy, plain, speed) * own / whole * phase.steps / total
        stored = workload.model_copy(update={"activation_cache": 0 < phase.cut == phase.plan.boundary})
        one = predict(phase.plan, anatomy, stored)
        largest = one if largest is None or one.peak_memory_bytes > largest.peak_memory_bytes else largest
    assert largest is not None
    cuts = [0, *(phase.cut for phase in found)]
    passes = sum(max(0.0, spared[now] - spared[before]) for before, now in pairwise(cuts))
    run = passes + a_step * workload.steps * workload.side_by_side
    full = step_flops(full_plan(anatomy), anatomy, workload.plain).total
    time = ratio = None
    if speed is not None:
        time = seconds * workload.steps / workload.gradient_accumulation_steps * (1 + passes / max(run - passes, 1.0))
        ratio = time / run_seconds(full_plan(anatomy), anatomy, workload.plain, speed)
    stored_at = {
        cut: bytes_on_disk(flow(cut_at(full_plan(anatomy), cut), anatomy), workload) for cut in set(cuts) - {0}
    }
    return Prediction(
        trainable_parameters=largest.trainable_parameters,
        total_parameters=largest.total_parameters,
        flops_ratio=a_step / full,
        run_flops=run,
        run_flops_ratio=run / (full * workload.steps * workload.side_by_side),
        run_seconds=time,
        time_ratio=ratio,
        memory_ratio=largest.memory_ratio,
        memory=largest.memory,
        disk_bytes=max(stored_at.values(), default=0),
        assumes=workload.model_dump(mode="json"),
    )


def _some(plans: Sequence[tuple[int, Plan]], steps: int) -> list[tuple[int, Plan, int]]:
    """(First step, plan, steps) of all plans, or of some at equal distances."""
    ends = [*(step for step, _ in plans[1:]), steps]
    every = [(step, plan, end - step) for (step, plan), end in zip(plans, ends, strict=True) if end > step]
    distance = -(-len(every) // MOST)
    return every[::distance]


def _phases(plans: Sequence[tuple[int, Plan, int]], *, cached: bool) -> list[_Phase]:
    found: list[_Phase] = []
    lowest: int | None = None
    for _, plan, length in reversed(plans):
        lowest = plan.boundary if lowest is None else min(lowest, plan.boundary)
        found.append(_Phase(plan, length, lowest if cached else 0))
    return found[::-1]
