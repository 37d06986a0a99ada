"""The model class, config and weights that a task needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.checkpoints import load_config, load_weights
from frostline.core.errors import ConfigError, DataError, UnsupportedModel, a_noun
from frostline.tasks import (
    Task,
    TaskKind,
    TaskOptions,
    able_models,
    load_task,
    model_kind,
    with_model_labels,
)

_OF_TEXTS = (AutoModelForSequenceClassification, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
HEADS: Mapping[TaskKind, tuple[Any, Mapping[str, Any]]] = {
    TaskKind.CLASSIFICATION: _OF_TEXTS,
    TaskKind.MULTI_LABEL: _OF_TEXTS,
    TaskKind.REGRESSION: _OF_TEXTS,
    TaskKind.TAGGING: (
        AutoModelForTokenClassification,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ),
    TaskKind.EXTRACTION: (
        AutoModelForQuestionAnswering,
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    ),
    TaskKind.CHOICE: (AutoModelForMultipleChoice, modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
}
"""Kind of task -> the auto class with the head for it, and the model types that have this head."""
PROBLEMS: Mapping[TaskKind, str] = {
    TaskKind.CLASSIFICATION: "single_label_classification",
    TaskKind.MULTI_LABEL: "multi_label_classification",
    TaskKind.REGRESSION: "regression",
}
"""Kind of task -> `config.problem_type`, which decides the loss of a classification head."""
OUTPUTS = {TaskKind.REGRESSION: 1, TaskKind.EXTRACTION: 2}
"""How many numbers a head without labels gives: one, or the logits of an answer's start and end."""


def task_for(model: str, task: str, options: TaskOptions | None = None) -> Task:
    """The task called `task`, with the labels of the model at `model` where that was trained on labels before.

    Args:
        model: a hub id or a folder.
        task: a built-in name, a file, a folder or a hub data set.
        options: how the task's rows are read.

    Raises `UserError` as `load_task` and `load_config` do, and for labels that the model does not know.
    """
    return in_labels_of(model, load_task(task, options), options)


def in_labels_of(model: str, task: Task, options: TaskOptions | None = None) -> Task:
    """The task with the labels of the model at `model`, where that has some; `options` say what the user gave."""
    config = load_config(model)
    own_class = (config.architectures or [""])[0]
    given = None if options is None else options.labels
    return with_model_labels(task, config, model_class=own_class, name=model, given=given)


def class_for(config: Any, kind: TaskKind) -> Any:
    """The transformers auto class whose head does a kind of task. Only encoders have a head for multiple choice.

    Raises `UserError` for a task that this kind of model cannot do.
    """
    model = model_kind(config)
    if model not in able_models(kind):
        raise UnsupportedModel(
            f"{a_noun(config.model_type)} model is {a_noun(model)} and cannot do {a_noun(kind)} task: use "
            f"{' or '.join(map(a_noun, able_models(kind)))}"
        )
    if kind in HEADS and not (kind is TaskKind.CHOICE and model != "encoder"):
        auto, types = HEADS[kind]
        if config.model_type not in types:
            raise UnsupportedModel(
                f"transformers has no {_head(auto)} for {a_noun(config.model_type)} model, which {kind} tasks need: "
                "use another model, such as bert"
            )
        return auto
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def config_for(name: str, task: Task | None) -> Any:
    """The config of the model at `name`, for the head and the labels of the task.

    Raises `UserError` when there is no such model, or the task has a single label.
    """
    config = load_config(name)
    return config if task is None else _for_task(config, task)


def _for_task(config: Any, task: Task) -> Any:
    config = copy.deepcopy(config)
    if task.kind in (TaskKind.CLASSIFICATION, TaskKind.TAGGING) and len(task.labels) < 2:
        raise DataError(
            f"task '{task.name}': all rows have the label '{task.labels[0]}': use rows with at least two labels"
        )
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in enumerate(task.labels)}
    elif task.kind in OUTPUTS:
        config.num_labels = OUTPUTS[task.kind]
    if task.kind in HEADS:
        config.problem_type = PROBLEMS.get(task.kind)
    return config


def check_head(name: str, model_class: str, config: Any, task: Task) -> None:
    """Raise `ConfigError` where a trained model at `name` has the head of another kind of task.

    Args:
        name: where the model is, for messages.
        model_class: the name of its class.
        config: of the model.
        task: what it is to be used for.
    """
    needed, problem = class_for(config, task.kind), PROBLEMS.get(task.kind)
    same = own_head(model_class) is own_head(needed.__name__)
    if not same or problem not in (None, config.problem_type or problem):
        loss = f" ({config.problem_type})" if config.problem_type else ""
        raise ConfigError(
            f"{name} is a {model_class}{loss}, which was not trained for {task.kind} tasks such as '{task.name}': "
            "use a task of the kind that it was trained for"
        )


def own_head(model_class: str) -> Any:
    """The auto class whose head a class of this name has; None for a language model, and for a model without a head."""
    return next((auto for auto, _ in HEADS.values() if _head(auto) in model_class), None)


def _head(auto: Any) -> str:
    """How the names of the classes end that an auto class makes, such as `ForTokenClassification`."""
    return str(auto.__name__.removeprefix("AutoModel"))


def check_length(max_length: int, config: Any, name: str) -> None:
    """Raise `UserError` when `max_length` tokens are more than the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < max_length:
        raise ConfigError(
            f"max_length: {max_length} is more than the {positions} positions of {name}: use {positions} or less"
        )


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
    if (head := own_head(name)) is not None:
        return head
    if model_kind(config) == "encoder":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
