"""A run whose model never lies in memory whole: its frozen bottom is read block by block."""

from __future__ import annotations

from typing import Any

import transformers

from frostline.bottom import CannotCut, Load
from frostline.core.errors import UserError
from frostline.engine import cut_boundary, load_above
from frostline.plan import FixedSchedule, Schedule
from frostline.run._config import RunConfig
from frostline.run._setup import anatomy_of, class_for, config_for
from frostline.strategies import Situation, choose_schedule
from frostline.tasks import Task, TaskKind


def load_streaming(config: RunConfig, task: Task) -> tuple[Any, Schedule, Load]:
    """The model with only what trains above its boundary, its schedule, and what reads the rest by name.

    The schedule is chosen from the model's config alone. Raises `UserError` for what streaming cannot do.
    """
    anatomy = anatomy_of(config.model, task)
    schedule = choose_schedule(config.strategy, Situation(anatomy, config.seed))
    _check(config, schedule)
    assert isinstance(schedule, FixedSchedule)
    model_config = config_for(config.model, task)
    model_class = class_for(model_config, task.kind)
    boundary = cut_boundary(schedule.plan, anatomy)
    transformers.set_seed(config.seed)
    try:
        model, load = load_above(config.model, model_class, model_config, boundary, config.frozen_dtype)
    except CannotCut as error:
        raise UserError(f"streaming: {error}: take streaming: false") from None
    return model, schedule, load


def streaming_notices(config: RunConfig, task: Task) -> list[str]:
    """What a streaming run leaves out, a line each."""
    if config.streaming and task.kind is TaskKind.GENERATION and config.generate_rows != 0:
        return ["streaming: no text is generated to score, which takes the whole model: frostline evaluate does it"]
    return []


def _check(config: RunConfig, schedule: Schedule) -> None:
    if config.cold_store == "off":
        raise UserError("streaming: true trains from the cold store: leave cold_store: off out")
    if config.batching == "packed":
        raise UserError("streaming: batching: packed is checked on the whole model first: take batching: grouped")
    if schedule.observes or not isinstance(schedule, FixedSchedule):
        raise UserError(
            f"streaming: strategy '{config.strategy}' changes its plan while it trains, and blocks below the boundary "
            "could not be trained later: take a fixed one, such as bot50"
        )
    if schedule.plan.boundary == 0:
        raise UserError(
            f"streaming: strategy '{config.strategy}' freezes nothing below the lowest trained block, so there is "
            "nothing to read block by block: take one that does, such as bot50"
        )
