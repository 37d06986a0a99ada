"""The model class, config and weights that a task needs."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.checkpoints import load_config, load_weights
from frostline.core.errors import ConfigError, DataError, UnsupportedModel
from frostline.tasks import Task, TaskKind, TaskOptions, load_task, model_kind, with_model_labels


def task_for(model: str, task: str, options: TaskOptions | None = None) -> Task:
    """The task called `task`, with the labels of the model at `model` where that was trained on labels before.

    Args:
        model: a hub id or a folder.
        task: a built-in name, a file, a folder or a hub data set.
        options: how the task's rows are read.

    Raises `UserError` as `load_task` and `load_config` do, and for labels that the model does not know.
    """
    loaded = load_task(task, options)
    config = load_config(model)
    own_class = (config.architectures or [""])[0]
    given = None if options is None else options.labels
    return with_model_labels(loaded, config, model_class=own_class, name=model, given=given)


def class_for(config: Any, kind: TaskKind) -> Any:
    """The transformers auto class whose head does a kind of task.

    Raises `UserError` for a task that this kind of model cannot do.
    """
    if kind is TaskKind.CLASSIFICATION:
        return AutoModelForSequenceClassification
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if model_kind(config) == "encoder":
        raise UnsupportedModel(f"a {config.model_type} model is an encoder and cannot do a {kind} task: use a decoder")
    return AutoModelForCausalLM


def config_for(name: str, task: Task | None) -> Any:
    """The config of the model at `name`, with the task's labels.

    Raises `UserError` when there is no such model, or the task has a single label.
    """
    config = load_config(name)
    if task is not None and task.kind is TaskKind.CLASSIFICATION:
        if len(task.labels) < 2:
            raise DataError(
                f"task '{task.name}': all rows have the label '{task.labels[0]}': use rows with at least two labels"
            )
        config = with_labels(config, task.labels)
    return config


def check_length(max_length: int, config: Any, name: str) -> None:
    """Raise `UserError` when `max_length` tokens are more than the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < max_length:
        raise ConfigError(
            f"max_length: {max_length} is more than the {positions} positions of {name}: use {positions} or less"
        )


def with_labels(config: Any, labels: tuple[str, ...]) -> Any:
    """A copy of `config` for a classification head with these labels."""
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    return config


def load_model(name: str, task: Task, *, seed: int, dtype: str = "auto") -> Any:
    """The pretrained model at `name` with the head that `task` needs; a new head is drawn from `seed`."""
    config = config_for(name, task)
    transformers.set_seed(seed)
    return load_weights(name, class_for(config, task.kind), config, dtype)


def anatomy_of(name: str, task: Task | None = None) -> Anatomy:
    """The anatomy of the model at `name`, read from its config alone; with the head that `task` needs.

    Without a task the head is that of the config's own class, or a language model's.
    """
    config = config_for(name, task)
    return find_anatomy(skeleton(config, model_class_of(config, task)))


def model_class_of(config: Any, task: Task | None) -> Any:
    """The transformers auto class with the head that `task` needs; without one the config's own."""
    return _own_class(config) if task is None else class_for(config, task.kind)


def _own_class(config: Any) -> Any:
    name = (config.architectures or [""])[0]
    if "SequenceClassification" in name or model_kind(config) == "encoder":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
