"""A plan or a schedule for a model that is in memory, in one call."""

from __future__ import annotations

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
from frostline.signals import Probe, measure, token_text
from frostline.strategies import Budget, Situation, make_selection
from frostline.tasks import pad_rows

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
    clients (`frostline.split.SplitTrainer`; the plan alone trains in one process), and the settings of the run that a
    planner chooses for a budget (`frostline train` sets them).

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
    schedule = make_schedule(
        model,
        strategy,
        data=data,
        data_collator=data_collator,
        budget=budget,
        workload=workload,
        options=options,
        frozen_dropout=frozen_dropout,
        seed=seed,
    )
    if not schedule.settled:
        raise PlanError(
            f"strategy '{strategy}' changes its plan while it trains, so there is no single plan: use "
            f'fl.make_schedule(model, "{strategy}"), or schedule="{strategy}" in the trainer'
        )
    return schedule.first


def make_schedule(
    model: nn.Module,
    strategy: str,
    *,
    data: Any = None,
    data_collator: Collate | None = None,
    budget: Budget | None = None,
    workload: Workload | None = None,
    options: Mapping[str, Any] | None = None,
    frozen_dropout: bool = False,
    seed: int = 0,
) -> Schedule:
    """The schedule that a strategy chooses for a model: for strategies whose plan changes while they train.

        schedule = fl.make_schedule(model, "adt-l50")
        trainer = fl.Trainer(model, args, schedule=schedule, train_dataset=rows, data_collator=collate)

    Every strategy has one; where the plan does not change, it is that of `make_plan` at every step. A schedule
    remembers how far training is: make a new one for each training.

    Args:
        model, strategy, data, data_collator, budget, workload, options, frozen_dropout, seed: as in `make_plan`.

    Raises `UserError` as `make_plan` does, but for a plan that changes.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: give a model, not {type(model).__name__}: load it first (AutoModel...from_pretrained)"
        )
    model = text_model(model)
    situation = Situation.of(
        model,
        seed,
        measure=None if data is None else partial(_measure, model, data, data_collator, seed),
        budget=budget or Budget(),
        workload=workload or Workload(),
    )
    schedule = make_selection(strategy, situation, options).schedule
    return keep_dropout(schedule) if frozen_dropout else schedule


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
