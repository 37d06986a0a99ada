"""The Trainer that users have: `engine.Trainer`, which may be given a strategy's name too."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import TrainingArguments

from frostline import engine
from frostline.engine import PlanFor, ScheduleFor
from frostline.run._make import make_plan, make_schedule


class Trainer(engine.Trainer):
    __doc__ = (engine.Trainer.__doc__ or "").replace(
        "plan: which blocks train, or a function",
        "plan: which blocks train: a plan, the name of a strategy or the path of a plan file, or a function",
    )

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
        making: dict[str, Any] = {"data": train_dataset, "data_collator": data_collator, "seed": seed}
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            *positional,
            plan=partial(make_plan, strategy=plan, **making) if isinstance(plan, str) else plan,
            schedule=partial(make_schedule, strategy=schedule, **making) if isinstance(schedule, str) else schedule,
            **options,
        )
