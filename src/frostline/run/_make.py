"""A plan or a schedule for a model that is in memory, in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from frostline.anatomy import text_model
from frostline.core.errors import ConfigError, DataError, PlanError
from frostline.core.seeding import derive_seed
from frostline.cost import Workload
from frostline.plan import Plan, Schedule, keep_dropout
from frostline.run._judge import FEWEST_ROWS
from frostline.run._trying_here import tried_plan
from frostline.signals import Probe, measure, token_text
from frostline.strategies import AutoOptions, Budget, Situation, make_selection, read_options
from frostline.tasks import pad_rows

_log = logging.getLogger(__name__)
Collate = Callable[[Any], Mapping[str, Any]]

_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "labels")
"""What a model is given of the rows, unless a collator says otherwise."""


def make_plan(
    model: nn.Module,
    strategy: str = "bot50",
    *,
    data: Any = None,
    data_collator: Collate | None = None,
    budget: Budget | None = None,
    workload: Workload | None = None,
    options: Mapping[str, Any] | None = None,
    frozen_dropout: bool = False,
    seed: int = 0,
) -> Plan:
    """The plan that a strategy chooses for a model. The model does not change.

        plan = fl.make_plan(model, "bot50")
        trainer = fl.Trainer(model, args, plan=plan, train_dataset=rows, data_collator=collate)

    A plan says which parts train, and how. Two things are not in it: that `splitlora` is trained by a server and
    clients (`frostline.split.SplitTrainer`; the plan alone trains in one process), and other settings of the run that a
    planner chooses for a budget (`frostline train` sets them).

    With `strategy="auto"`, rows and a budget of time, copies of the model are trained for a part of the time, to choose
    by trying (docs/strategies/auto.md). The plan then has `learning_rate` and `max_steps`: the rate, and the steps that
    the rest of the time pays for. Batches are those of the `workload`.

    Args:
        model: a transformers model, in memory.
        strategy: its name (`bot50`, `semantic`, `lora`, ...), or the path of a plan file.
        data: a data set of tokenized rows with `input_ids` and `labels`, for strategies that measure the model.
        data_collator: makes batches of the rows; by default they are padded on the right.
        budget: what training may use, for strategies that plan for one.
        workload: the training that the budget is for.
        options: options of the strategy.
        frozen_dropout: let dropout act in frozen blocks; by default they are in eval mode.
        seed: seed of what is drawn at random.

    Raises `PlanError` for a strategy whose plan changes while it trains (`make_schedule` is for those) and where no
    plan fits, `ConfigError` for an unknown strategy or option and for a strategy that needs data where there is none,
    `UnsupportedModel` for a model without blocks.
    """
    tries = _tries(strategy, data, budget, options)
    if tries is not None:
        situation = _situation(model, data, data_collator, budget, workload, seed)
        plan = tried_plan(text_model(model), situation, tries, data, data_collator or partial(_padded, model))
        return plan.model_copy(update={"frozen_dropout": frozen_dropout})
    steps = 1  # how many does not matter: a plan that changes is refused
    situation = _situation(model, data, data_collator, budget, workload, seed, steps)
    selection = make_selection(strategy, situation, options)
    schedule = keep_dropout(selection.schedule) if frozen_dropout else selection.schedule
    if not schedule.settled:
        raise PlanError(
            f"strategy '{strategy}' changes its plan while it trains, so there is no single plan: use "
            f'fl.make_schedule(model, "{strategy}", steps=...), or schedule="{strategy}" in the trainer'
        )
    if strategy != "auto" or selection.choice is None or situation.budget.time is None:
        return schedule.first
    work = selection.choice.workload
    steps = round(
        work.num_train_epochs * work.rows / (work.per_device_train_batch_size * work.gradient_accumulation_steps)
    )
    return schedule.first.model_copy(
        update={"learning_rate": selection.choice.learning_rate, "max_steps": max(1, steps)}
    )


def make_schedule(
    model: nn.Module,
    strategy: str,
    *,
    data: Any = None,
    data_collator: Collate | None = None,
    budget: Budget | None = None,
    workload: Workload | None = None,
    options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    frozen_dropout: bool = False,
    seed: int = 0,
) -> Schedule:
    """The schedule that a strategy chooses for a model: for strategies whose plan changes while they train.

        schedule = fl.make_schedule(model, "freezeout", steps=300)
        trainer = fl.Trainer(model, args, schedule=schedule, train_dataset=rows, data_collator=collate)

    Every strategy has one; where the plan does not change, it is that of `make_plan` at every step. A schedule
    remembers how far training is: make a new one for each training.

    Args:
        model, strategy, data, data_collator, budget, workload, options, frozen_dropout, seed: as in `make_plan`.
        steps: optimizer steps of the training, for strategies that change the plan at shares of it.

    Raises `UserError` as `make_plan` does, but for a plan that changes.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps: {steps} is no number of optimizer steps: use at least 1")
    situation = _situation(model, data, data_collator, budget, workload, seed, steps)
    schedule = make_selection(strategy, situation, options).schedule
    return keep_dropout(schedule) if frozen_dropout else schedule


def _situation(
    model: Any,
    data: Any,
    collate: Collate | None,
    budget: Budget | None,
    workload: Workload | None,
    seed: int,
    steps: int | None = None,
) -> Situation:
    """What a strategy knows of a model in memory and of its rows. Raises `ConfigError` where it is no model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: give a model, not {type(model).__name__}: load it first (AutoModel...from_pretrained)"
        )
    model = text_model(model)
    limited = budget is not None and budget.limits and data is not None
    return Situation.of(
        model,
        seed,
        measure=None if data is None else partial(_measure, model, data, collate, seed),
        budget=budget or Budget(),
        workload=_work(workload, data) if limited else workload or Workload(),
        steps=steps,
    )


def _tries(strategy: str, data: Any, budget: Budget | None, options: Mapping[str, Any] | None) -> AutoOptions | None:
    """The options of `auto` where trials can be made, else None."""
    if strategy != "auto" or data is None or budget is None or budget.time is None:
        return None
    found = AutoOptions.model_validate(read_options("auto", options or {}))
    if found.held_out == "eval":
        raise ConfigError("options: held_out=eval needs the evaluation rows of a task: leave it out (frostline train)")
    if found.trials and len(data) < FEWEST_ROWS:
        _log.warning("auto: %d rows are too few to hold some out for trials: a rule chooses the plan", len(data))
        return None
    return found if found.trials else None


def _work(workload: Workload | None, data: Any) -> Workload:
    """The work on some rows, as far as it is not given; three passes, as a run makes by default."""
    sample = [len(data[index]["input_ids"]) for index in range(min(256, len(data)))]
    known = {"rows": len(data), "length": max(1, round(sum(sample) / len(sample))), "num_train_epochs": 3.0}
    given = Workload() if workload is None else workload
    open_ = {name: value for name, value in known.items() if name not in given.model_fields_set}
    return given.model_copy(update={**open_, "loss_positions": True})


def _measure(
    model: Any, data: Any, collate: Collate | None, seed: int, signals: Sequence[str] | None, rows: int
) -> Probe:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(seed, "probe")))
    sample = [data[index] for index in order[:rows].tolist()]
    if collate is not None and sample and "labels" not in sample[0]:  # it makes them, or finds them under another name
        made = [collate([row]) for row in sample]
        if "labels" in made[0]:
            sample = [{**row, "labels": batch["labels"][0].tolist()} for row, batch in zip(sample, made, strict=True)]
            collate = None
    if not sample or not {"input_ids", "labels"} <= sample[0].keys():
        raise DataError("data: the rows have no input_ids or no labels: use a data set of tokenized rows with both")
    found = measure(model, sample, collate or partial(_padded, model), signals=signals)
    labels = torch.as_tensor(sample[0]["labels"])
    classes = labels.dim() == 0 or labels.is_floating_point()
    read = token_text(Situation.of(model).anatomy, classes=classes, tokens="first")
    return Probe(str(getattr(model.config, "_name_or_path", "")) or "the model", "the data", len(sample), read, found)


def _padded(model: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    pad_id = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    return pad_rows([{name: row[name] for name in _COLUMNS if name in row} for row in rows], pad_id)
