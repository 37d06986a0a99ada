"""`Trainer` and `attach` as users have them: a plan may also be the name of a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import transformers
from transformers import TrainingArguments

from frostline import engine
from frostline.engine import PlanFor, ScheduleFor
from frostline.hooks import state_kept
from frostline.run._make import make_plan, make_schedule

AnyTrainer = TypeVar("AnyTrainer", bound=transformers.Trainer)
_PLAN = "plan: which blocks train"
_NAMED = "plan: which blocks train: a plan, the name of a strategy, the path of a plan file, or a function of the model"


class Trainer(engine.Trainer):
    __doc__ = (engine.Trainer.__doc__ or "").replace(_PLAN, _NAMED)

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        *positional: Any,
        plan: PlanFor | str | None = None,
        schedule: ScheduleFor | str | None = None,
        **options: Any,
    ) -> None:
        seed = args.seed if args else 0
        named = _Named(train_dataset, data_collator, seed)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            *positional,
            plan=named.plan(plan),
            schedule=named.schedule(schedule),
            **options,
        )


def attach(
    trainer: AnyTrainer,
    plan: PlanFor | str | None = None,
    schedule: ScheduleFor | str | None = None,
    **options: Any,
) -> AnyTrainer:
    rows: Any = getattr(trainer, "train_dataset", None)
    listed = hasattr(rows, "__getitem__") and hasattr(rows, "__len__") and not isinstance(rows, Mapping)
    with state_kept(rows):  # a data set may draw random numbers
        first = rows[0] if listed and len(rows) else {}
    data = rows if isinstance(first, Mapping) and {"input_ids", "labels"} <= first.keys() else None
    seed = trainer.args.seed if isinstance(trainer, transformers.Trainer) else 0
    named = _Named(data, getattr(trainer, "data_collator", None), seed)
    return engine.attach(trainer, named.plan(plan), named.schedule(schedule), **options)


attach.__doc__ = (engine.attach.__doc__ or "").replace(_PLAN, _NAMED)


@dataclass(frozen=True)
class _Named:
    """Makes plans and schedules of their names, with the rows that a strategy may measure the model on."""

    data: Any
    data_collator: Any
    seed: int

    def plan(self, given: PlanFor | str | None) -> PlanFor | None:
        if not isinstance(given, str):
            return given
        return partial(make_plan, strategy=given, data=self.data, data_collator=self.data_collator, seed=self.seed)

    def schedule(self, given: ScheduleFor | str | None) -> ScheduleFor | None:
        if not isinstance(given, str):
            return given
        return partial(make_schedule, strategy=given, data=self.data, data_collator=self.data_collator, seed=self.seed)
