"""Use a model or a run: plan for it, look at it, evaluate it, generate with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from frostline.anatomy import Anatomy, notices
from frostline.core.errors import UserError
from frostline.cost import Prediction, Workload, has_dropout, predict, storage_dtype
from frostline.engine import load, load_config, load_tokenizer, load_weights
from frostline.plan import Plan, document
from frostline.records import RECORD_FILE, read_record
from frostline.run._config import RunConfig
from frostline.run._prepare import autocast
from frostline.run._setup import anatomy_of, class_for, load_model
from frostline.strategies import Situation, choose_schedule
from frostline.tasks import Evaluation, TaskKind, TaskOptions, evaluate, generate_texts, load_task, prepare_tokenizer


@dataclass(frozen=True)
class PlannedModel:
    """A plan for a model, and what it is predicted to cost."""

    plan: Plan
    anatomy: Anatomy
    prediction: Prediction
    notices: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What `frostline plan --json` prints."""
        return {
            **document(self.plan),
            "boundary": self.plan.boundary,
            "trainable_parameters": self.prediction.trainable_parameters,
            "total_parameters": self.prediction.total_parameters,
            "predicted": self.prediction.document(),
            "assumes": dict(self.prediction.assumes),
            "notices": list(self.notices),
        }


def plan_model(
    model: str, strategy: str, *, workload: Workload, task: str | None = None, seed: int = 42
) -> PlannedModel:
    """The plan that `strategy` starts with on the model at `model`, from its config alone.

    `task` decides the head; without one it is that of the config's own class. Raises `UserError` for an
    unknown model, strategy or task.
    """
    anatomy = anatomy_of(model, load_task(task) if task else None)
    workload = _as_the_model_is(workload, load_config(model))
    plan = choose_schedule(strategy, Situation(anatomy, seed)).next(0, {})
    if plan is None:
        raise UserError(f"strategy '{strategy}' gave no plan for step 0")
    return PlannedModel(plan, anatomy, predict(plan, anatomy, workload), tuple(notices(plan, anatomy)))


def _as_the_model_is(workload: Workload, config: Any) -> Workload:
    """The workload, with what it leaves open read from the model's config: its dtype, whether it drops out."""
    own = {"frozen_dtype": storage_dtype(config.dtype), "dropout": has_dropout(config)}
    open_ = {key: value for key, value in own.items() if key not in workload.model_fields_set}
    return Workload.model_validate({**workload.model_dump(), **open_})


def inspect_model(model: str, *, task: str | None = None) -> Anatomy:
    """Where the model at `model` keeps its parts, from its config alone."""
    return anatomy_of(model, load_task(task) if task else None)


def evaluate_target(
    target: str,
    task: str | None = None,
    *,
    options: TaskOptions | None = None,
    batch_size: int = 32,
    max_length: int = 128,
    generate_rows: int | None = None,
    max_new_tokens: int = 64,
    precision: str = "auto",
    seed: int = 42,
) -> Evaluation:
    """Score a run's trained model, or a pretrained one, on a task's evaluation split.

    For a run, the task and how its rows are read are the run's own unless given. Raises `UserError` when the
    target is neither, or the task is not one the model was trained for.
    """
    folder = Path(target)
    if is_run(folder):
        config = RunConfig.model_validate(read_record(folder).config)
        loaded = load_task(task or config.task, options or (config.data if task in (None, config.task) else None))
        model = load(folder)
        if loaded.kind is TaskKind.CLASSIFICATION and model.config.num_labels != len(loaded.labels):
            raise UserError(
                f"{target} tells {model.config.num_labels} labels apart, and task '{loaded.name}' has "
                f"{len(loaded.labels)}"
            )
    elif task is None:
        raise UserError(f"{target} is no run, so say what to evaluate it on: --task")
    else:
        loaded = load_task(task, options)
        model = load_model(target, loaded, seed=seed)
    tokenizer = prepare_tokenizer(load_tokenizer(target), model)
    with autocast(precision):
        return evaluate(
            model,
            tokenizer,
            loaded,
            batch_size=batch_size,
            max_length=max_length,
            generate_rows=generate_rows,
            max_new_tokens=max_new_tokens,
        )


def generate_target(target: str, prompts: Sequence[str], *, max_new_tokens: int = 64, **decoding: Any) -> list[str]:
    """What a run's trained model, or a pretrained one, writes after each prompt; greedy by default.

    `decoding` are keywords of transformers' `generate`. Raises `UserError` for a model that writes no text.
    """
    folder = Path(target)
    if is_run(folder):
        model = load(folder)
    else:
        config = load_config(target)
        model = load_weights(target, class_for(config, TaskKind.GENERATION), config)
    if not model.can_generate():
        raise UserError(f"{target} is a {type(model).__name__}, which writes no text: give a language model")
    transformers.set_seed(decoding.pop("seed", 42))
    tokenizer = prepare_tokenizer(load_tokenizer(target), model)
    return generate_texts(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **decoding)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run (a record) or a checkpoint of one (a delta)."""
    return (folder / RECORD_FILE).is_file()
