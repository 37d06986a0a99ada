"""A run whose model is never in memory as a whole: its frozen bottom is read block by block."""

from __future__ import annotations

from typing import Any

import transformers

from frostline.anatomy import find_anatomy, skeleton
from frostline.bottom import CannotCut, Load, cut_boundary
from frostline.checkpoints import kept_dtype, load_above
from frostline.core.errors import ConfigError, PlanError, UnsupportedModel
from frostline.cost import Workload
from frostline.plan import Schedule
from frostline.run._choosing import Chosen, choose, measure_here
from frostline.run._config import RunConfig
from frostline.run._probing import LoadedModel, load_streamed
from frostline.run._setup import class_for, config_for
from frostline.run._work import Data, evaluation_to_fit, workload_of
from frostline.tasks import Task, TaskKind, model_kind, prepare_tokenizer


def load_streaming(config: RunConfig, data: Data, before: Chosen | None) -> tuple[Any, Chosen, Load]:
    """The model with only what is above its boundary, what its strategy chose, and what reads the rest by name.

    A strategy that measures the model reads it block by block too.

    Args:
        config: the run's config.
        data: the run's rows.
        before: what was chosen for a run that is resumed.

    Raises `UserError` for what streaming cannot do.
    """
    _check_config(config)
    task = data.task
    model_config = config_for(config.model, task)
    if task.kind is TaskKind.CHOICE and model_kind(model_config) != "encoder":
        raise ConfigError(
            "streaming: this model chooses by the loss of each choice, which needs the whole model: leave streaming out"
        )
    model_class = class_for(model_config, task.kind)
    bare = skeleton(model_config, model_class)
    anatomy = find_anatomy(bare)

    def work() -> Workload:
        return workload_of(config, data, anatomy, bare.config, kept_dtype(config.frozen_dtype, bare.dtype))

    def load_around() -> LoadedModel:
        loaded = load_streamed(config.model, task, anatomy, config.seed, config.frozen_dtype)
        prepare_tokenizer(data.tokenizer, loaded.model)
        return loaded

    blocks = measure_here(load_around, bare, anatomy, config, data)
    evaluation = evaluation_to_fit(config, data, anatomy, bare.config)
    steps = 1  # how many does not matter: a plan that changes is refused
    chosen = before or choose(config, anatomy, work, steps, blocks, model_config, model_class, evaluation)
    _check_schedule(config, chosen.schedule, anatomy.tied)
    boundary = cut_boundary(chosen.schedule.first, anatomy)
    transformers.set_seed(config.seed)
    try:
        model, load = load_above(config.model, model_class, model_config, boundary, config.frozen_dtype)
    except CannotCut as error:
        raise UnsupportedModel(f"streaming: {error}: use streaming=false") from None
    return model, chosen, load


def streaming_notices(config: RunConfig, task: Task) -> list[str]:
    """What a streaming run does not do, as lines."""
    if config.streaming and task.kind is TaskKind.GENERATION and config.generate_rows != 0:
        return [
            "streaming: generated texts are not scored, since that needs the whole model: use frostline evaluate later"
        ]
    return []


def _check_config(config: RunConfig) -> None:
    if config.activation_cache == "off":
        raise ConfigError(
            "streaming: it trains from the activation cache: leave activation_cache=off out, or streaming"
        )
    if config.resize_embeddings:
        raise ConfigError(
            "streaming: new embeddings have to train, and then no block is below the boundary: leave resize_embeddings "
            "out, or streaming"
        )
    if config.packing:
        raise ConfigError(
            "streaming: packing is checked on the whole model: use train_sampling_strategy=group_by_length instead"
        )


def _check_schedule(config: RunConfig, schedule: Schedule, tied: bool) -> None:
    if not schedule.settled:
        raise PlanError(
            f"streaming: strategy '{config.strategy}' changes its plan while it trains, but blocks that are not in "
            "memory cannot train later: use a strategy with a fixed plan, such as bot50"
        )
    if schedule.first.untie and tied:
        raise PlanError(
            f"streaming: strategy '{config.strategy}' gives the tied head weights of its own (untie), which needs the "
            "embeddings in memory: use a plan without untie, such as bot50, or streaming=false"
        )
    if schedule.first.boundary == 0:
        raise PlanError(
            f"streaming: strategy '{config.strategy}' trains the first block, so there are no frozen blocks to read "
            "one by one: use a strategy that freezes the bottom, such as bot50"
        )
