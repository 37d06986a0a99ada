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
from frostline.run._steps import steps_of

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
        named = _Named(train_dataset, data_collator, args or TrainingArguments())
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
    args = trainer.args if isinstance(trainer, transformers.Trainer) else TrainingArguments()
    named = _Named(data, getattr(trainer, "data_collator", None), args, rows)
    return engine.attach(trainer, named.plan(plan), named.schedule(schedule), **options)


attach.__doc__ = (engine.attach.__doc__ or "").replace(_PLAN, _NAMED)


@dataclass(frozen=True)
class _Named:
    """Makes plans and schedules of their names, with the rows that a strategy may measure the model on."""

    data: Any
    data_collator: Any
    args: TrainingArguments
    rows: Any = None
    """What is trained on, where `data` is not."""

    def plan(self, given: PlanFor | str | None) -> PlanFor | None:
        return partial(make_plan, strategy=given, **self._known) if isinstance(given, str) else given

    def schedule(self, given: ScheduleFor | str | None) -> ScheduleFor | None:
        if not isinstance(given, str):
            return given
        rows = self.data if self.rows is None else self.rows
        listed = hasattr(rows, "__len__") and not isinstance(rows, Mapping)
        known = listed or self.args.max_steps > 0
        steps = steps_of(self.args, len(rows) if listed else 1) if known else None
        return partial(make_schedule, strategy=given, steps=steps, **self._known)

    @property
    def _known(self) -> dict[str, Any]:
        return {"data": self.data, "data_collator": self.data_collator, "seed": self.args.seed}
