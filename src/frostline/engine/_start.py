"""How a trainer begins: the plan that its model carries, a bottom that is read block by block, checkpointing."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import TrainingArguments

from frostline.bottom import Load, Streaming
from frostline.core.errors import ConfigError
from frostline.plan import FixedSchedule, Plan, Schedule
from frostline.surgery import Applied, applied_to, apply


def settle(model: Any, plan: Plan | None, schedule: Schedule | None, args: TrainingArguments | None) -> Schedule:
    """Apply the plan that training starts with, and give the schedule that goes on from it."""
    if not isinstance(model, nn.Module):
        raise ConfigError("frostline.Trainer needs the model itself (model=...), so that it can apply the plan")
    already = applied_to(model)
    if plan is not None and schedule is not None:
        raise ConfigError("give plan or schedule, not both: a plan is the schedule that never changes")
    if plan is None and schedule is None:
        if already is None:
            raise ConfigError("give plan=... or schedule=...: frostline.make_plan(model, 'bot50') makes a plan")
        return FixedSchedule(already.plan)
    chosen = schedule or FixedSchedule(cast(Plan, plan))
    if not chosen.settled and args is not None and args.world_size > 1:
        raise ConfigError("a schedule that changes its plan while training runs in one process: use a fixed plan")
    if already is None or already.plan != chosen.first:
        apply(chosen.first, model, seed=args.seed if args else 0)
    return chosen


def streaming(model: Any, applied: Applied, load: Load | None) -> Streaming | None:
    if load is None:
        return None
    found = Streaming(model, applied.anatomy, load)
    found.read_hashes(applied.plan.boundary)
    # What was in memory is known as it was loaded; the final norm may since have been widened to train.
    base = cast(dict[str, str], applied.base)
    base.update({name: value for name, value in found.hashes.items() if name not in base})
    return found


def non_reentrant(options: dict[str, Any] | None) -> dict[str, Any]:
    options = dict(options or {})
    if options.setdefault("use_reentrant", False):
        raise ConfigError(
            "use_reentrant: true would train nothing above a frozen bottom: leave it out (non-reentrant "
            "checkpointing is used)"
        )
    return options
