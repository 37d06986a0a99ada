"""Start a trainer: apply its plan, prepare a bottom that is read block by block, check activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from frostline.anatomy import text_model
from frostline.bottom import Load, Streaming, check_mode
from frostline.core.errors import ConfigError, DataError
from frostline.core.sizes import parse_size
from frostline.hooks import begin_step
from frostline.plan import FixedSchedule, Plan, Schedule, document, whole_plan
from frostline.processes import running
from frostline.surgery import Applied, applied_to, apply, as_given, change

PlanFor = Plan | Callable[[Any], Plan]
"""A plan, or what makes one for a model."""
ScheduleFor = Schedule | Callable[[Any], Schedule]
"""A schedule, or what makes one for a model."""


def check_settings(mode: Any, limit: Any, loss_positions: Any = True) -> int | None:
    """The limit of the activation cache in bytes, of what a user says about the shortcuts.

    Raises `ConfigError` that says what a setting should be.
    """
    if not isinstance(loss_positions, bool):
        raise ConfigError(f"loss_positions: '{loss_positions}' is not known: use True or False")
    if isinstance(limit, str):
        limit = parse_size(limit, "activation_cache_limit")
    check_mode(mode)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ConfigError(
            f"activation_cache_limit: '{limit}' is no number of bytes: use a whole number of at least 0, or a size "
            "such as 20GB"
        )
    return limit


def check_same(rows: Any, plan: Plan, schedule: Schedule) -> None:
    """Check that there are rows, and that all processes train with as many rows, under one plan.

    Args:
        rows: the training set.
        plan: what trains.
        schedule: what decides on later plans.

    Raises `DataError` for rows that are none or differ in number, and `ConfigError` for plans that differ.
    """
    count = len(rows) if hasattr(rows, "__len__") else None
    if count == 0:
        raise DataError("train_dataset: it has no rows: use one with at least one row")
    each = running().every((count, (document(plan), schedule.state_dict())))
    for rank, (other, their_plan) in enumerate(each):
        if other != each[0][0]:
            raise DataError(
                f"train_dataset: process 0 has {each[0][0]} rows and process {rank} {other}: give all processes the "
                "same rows, which the trainer divides between them"
            )
        if their_plan != each[0][1]:
            raise ConfigError(f"plan: processes 0 and {rank} have different plans: use one plan in all processes")


def start_schedule(
    model: Any, plan: PlanFor | None, schedule: ScheduleFor | None, args: TrainingArguments | None
) -> Schedule:
    """Apply the plan that training starts with, and give the schedule.

    Args:
        model: the model itself.
        plan: a fixed plan. Without plan and schedule the model trains as it is: under the plan that was applied to it
            before, or with the parameters that require gradients.
        schedule: instead of a plan. Its own state does not change where it is used for a second model.
        args: of the training, for the seed.

    Raises `ConfigError` when plan and schedule are both given, or neither and nothing is frozen, `PlanError` when the
    plan does not fit.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "frostline.Trainer applies the plan to the model, so it needs the model itself: use model=... or "
            "model_init=..."
        )
    if plan is not None and schedule is not None:
        raise ConfigError("plan and schedule are both given: use plan=... for a fixed plan, or schedule=..., not both")
    for name, given, right in (
        ("plan", plan, isinstance(plan, Plan)),
        ("schedule", schedule, hasattr(schedule, "next")),
    ):
        if given is not None and not right and not callable(given):
            known = f"a {name}, a name, or a function of the model"
            raise ConfigError(f"{name}: it should be {known}, not {type(given).__name__}")
    if plan is None and schedule is None:
        return FixedSchedule(as_given(model).plan)
    already = applied_to(model)
    chosen: Schedule
    if schedule is not None:
        chosen = same_for_all(schedule(text_model(model))) if callable(schedule) else schedule
    elif isinstance(plan, Plan):
        chosen = FixedSchedule(plan)
    else:
        chosen = same_for_all(FixedSchedule(cast(Callable[[Any], Plan], plan)(text_model(model))))
    if already is None or already.plan != chosen.first:
        apply(whole_plan(chosen), text_model(model), seed=args.seed if args else 0)
        change(chosen.first, text_model(model))
    if chosen.first.forward.drops and args is not None:
        allow_drops(args)
    return chosen


def same_for_all(schedule: Schedule) -> Schedule:
    """The fixed plan of the first process, for all that train together. Other schedules depend on no measurement."""
    return FixedSchedule(running().same(schedule.first)) if isinstance(schedule, FixedSchedule) else schedule


def allow_drops(args: TrainingArguments) -> None:
    """Prepare a training in whose steps some blocks or adapters get no gradient (LayerDrop, AdapterDrop).

    DistributedDataParallel waits for every gradient unless it is told to find those that do not come. transformers does
    not tell it with activation checkpointing.

    Raises `ConfigError` for settings that need every gradient, or a graph that is the same in every step.
    """
    for name, wrong in (("ddp_find_unused_parameters", False), ("ddp_static_graph", True), ("torch_compile", True)):
        if getattr(args, name) is wrong:
            raise ConfigError(f"{name}: blocks or adapters are left out of some steps: use {name}={not wrong}")
    args.ddp_find_unused_parameters = True


class CountSteps(TrainerCallback):
    """Tells the model which step begins, because what is left out of it is drawn from that number."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **around: Any) -> None:
        begin_step(around["model"], state.global_step)


def streaming(model: Any, applied: Applied, load: Load | None) -> Streaming | None:
    """The bottom of `model` where `load` reads it block by block; None without `load`."""
    if load is None:
        return None
    found = Streaming(model, applied.anatomy, load)
    found.read_hashes(applied.plan.boundary)
    # Keep the hashes that `apply` took: since then, the final norm may have been converted to float32 to train.
    base = cast(dict[str, str], applied.base)
    base.update({name: value for name, value in found.hashes.items() if name not in base})
    return found


def non_reentrant(options: dict[str, Any] | None) -> dict[str, Any]:
    """The options of activation checkpointing with `use_reentrant` off. Raises `ConfigError` when it is on."""
    options = dict(options or {})
    if options.setdefault("use_reentrant", False):
        raise ConfigError(
            "activation_checkpointing_kwargs: with use_reentrant=true, nothing above a frozen bottom would train: use "
            "use_reentrant=false"
        )
    return options
