"""Plan for a model, look at it, evaluate it, and generate with it; the last two with a run too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from pydantic import ValidationError
from transformers import AutoModelForMultipleChoice

from frostline.anatomy import Anatomy, notices
from frostline.checkpoints import CARD_FILE, load, load_config, load_tokenizer, load_weights
from frostline.core.errors import CheckpointError, ConfigError, DataError, UnsupportedModel
from frostline.core.settings import first_error
from frostline.core.sizes import parse_size
from frostline.cost import (
    EvaluationWork,
    Prediction,
    Workload,
    evaluation_memory,
    has_dropout,
    optimizer_notice,
    predict_phases,
    rows_within,
    storage_dtype,
)
from frostline.plan import Plan, document, phases
from frostline.records import RECORD_FILE, RunRecord, read_record
from frostline.run._calibrate import calibrate
from frostline.run._config import RunConfig, read_config
from frostline.run._device import autocast, device
from frostline.run._optim import check_workload
from frostline.run._probing import probe_model
from frostline.run._setup import (
    anatomy_of,
    check_head,
    check_length,
    class_for,
    config_for,
    in_labels_of,
    load_model,
    model_class_of,
    own_head,
    task_for,
)
from frostline.run._work import assumed_evaluation
from frostline.signals import Probe
from frostline.strategies import Budget, Choice, Selection, Situation, make_selection
from frostline.tasks import (
    Decoding,
    Evaluation,
    Example,
    TaskKind,
    TaskOptions,
    chat_prompt,
    evaluate,
    generate_texts,
    load_task,
    prepare_tokenizer,
    turn_end,
    with_model_labels,
)

CHANGED = (
    "the task's rows are not those that the run was trained on: rows it trained on may be among those it is evaluated "
    "on here: use data.eval=FILE with other rows"
)
"""Said where the task of a run is evaluated after its file, or how it is read, changed."""


@dataclass(frozen=True)
class PlannedModel:
    """A plan for a model, and its predicted cost.

    `evaluation` is the work of an evaluation, as it is assumed, and `evaluation_bytes` its peak memory. `choice` is
    what a planner chose, where there was a budget. `moves` says that the plan changes while training.
    """

    plan: Plan
    anatomy: Anatomy
    prediction: Prediction
    notices: tuple[str, ...]
    evaluation: EvaluationWork
    evaluation_bytes: int
    choice: Choice | None = None
    moves: bool = False

    def document(self) -> dict[str, Any]:
        """What `frostline plan --json` prints."""
        return {
            **document(self.plan),
            "boundary": self.plan.boundary,
            "trainable_parameters": self.prediction.trainable_parameters,
            "total_parameters": self.prediction.total_parameters,
            "predicted": {**self.prediction.document(), "evaluation_memory_bytes": self.evaluation_bytes},
            "assumes": dict(self.prediction.assumes),
            "chosen": None if self.choice is None else self.choice.document(),
            "notices": list(self.notices),
        }


def plan_model(
    model: str,
    strategy: str,
    *,
    workload: Workload,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    calibrated: bool = False,
    seed: int = 42,
) -> PlannedModel:
    """The plan that `strategy` starts with on a model. The model's config is enough, unless the strategy measures it.

    Args:
        model: a hub id or a folder.
        strategy: its name, or a plan file.
        workload: the work that the cost is predicted for.
        task: decides the head, and is what the model is measured on; without it the head is that of the config's class.
        options: options of the strategy.
        budget: what training may use, for `auto`.
        calibrated: time a small part of the model on this machine, so that seconds are predicted too.
        seed: seed of what the strategy draws at random.

    Raises `UserError` for an unknown model, strategy, option or task, and `PlanError` for a budget that no plan fits.
    """
    check_workload(workload)
    loaded = task_for(model, task) if task else None
    anatomy = anatomy_of(model, loaded)
    config = config_for(model, loaded)
    workload = _as_the_model_is(workload, config)
    if loaded is not None and model_class_of(config, loaded) is AutoModelForMultipleChoice:
        if workload.activation_cache:
            raise ConfigError("activation_cache: a row of several texts is not stored: leave activation_cache out")
        workload = workload.model_copy(update={"texts": len(loaded.train[0].choices)})
    evaluation = assumed_evaluation(anatomy, workload, config)
    limit = parse_size(budget.memory, "memory") if budget is not None and isinstance(budget.memory, str) else None
    situation = Situation(
        anatomy,
        seed,
        measure=None if task is None else partial(_probe, model, task, seed, workload.length),
        budget=budget or Budget(),
        workload=workload,
        evaluation=None if limit is None else evaluation.at_most(1),
        speed=calibrate(config, model_class_of(config, loaded), workload) if calibrated else None,
        steps=workload.optimizer_steps,
    )
    selection = make_selection(strategy, situation, options)
    plan, choice = selection.schedule.first, selection.choice
    steps = workload.optimizer_steps
    plans = phases(selection.schedule, steps)
    prediction = (
        predict_phases(plans, steps, anatomy, workload, situation.speed) if choice is None else choice.prediction
    )
    found = (*notices(plan, anatomy), *_notices(selection, workload.optim))
    work = workload if choice is None else choice.workload
    if limit is not None:
        evaluation = evaluation.at_most(rows_within(limit, plan, anatomy, work, evaluation))
    needs = evaluation_memory(plan, anatomy, work, evaluation)
    moves = not selection.schedule.settled
    return PlannedModel(plan, anatomy, prediction, found, evaluation, needs, choice, moves)


def _notices(selection: Selection, optim: str) -> Iterator[str]:
    """What the plan alone does not say, as lines."""
    if not selection.schedule.settled:
        yield "the plan changes while training: this is the first plan; the cost is that of all steps"
    if (notice := optimizer_notice(optim)) is not None:
        yield notice
    if selection.split is not None:
        yield f"a server and {selection.split.clients} clients train it; the cost is predicted for one process"


def _probe(model: str, task: str, seed: int, length: int, signals: Sequence[str] | None, rows: int) -> Probe:
    return probe_model(model, task, rows=rows, signals=signals, max_length=length, seed=seed)


def _as_the_model_is(workload: Workload, config: Any) -> Workload:
    """The workload; dtype and dropout come from the model's config where the workload does not give them."""
    own = {"frozen_dtype": storage_dtype(config.dtype), "dropout": has_dropout(config)}
    open_ = {key: value for key, value in own.items() if key not in workload.model_fields_set}
    return Workload.model_validate({**workload.model_dump(), **open_})


def inspect_model(model: str, *, task: str | None = None) -> Anatomy:
    """The anatomy of the model at `model`, from its config alone; `task` decides the head."""
    return anatomy_of(model, task_for(model, task) if task else None)


def evaluate_target(
    target: str,
    task: str | None = None,
    *,
    base: str | None = None,
    options: TaskOptions | None = None,
    per_device_eval_batch_size: int | None = None,
    max_length: int | None = None,
    generate_rows: int | None = None,
    max_new_tokens: int | None = None,
    decoding: Decoding | None = None,
    bf16: bool | None = None,
    seed: int | None = None,
) -> Evaluation:
    """Evaluate a run's model (or a checkpoint's), or a pretrained one, on a task's evaluation split.

    Settings that are not given are the run's own, or else the defaults of `RunConfig`.

    Args:
        target: a run's folder, a checkpoint's folder, a hub id or a model's folder.
        task: the task; by default the run's own.
        base: where the base of a run is now, if it has moved.
        options: how rows are read; by default as the run did, if the task is its own.
        per_device_eval_batch_size, max_length, generate_rows, max_new_tokens, bf16, seed: as in `RunConfig`.
        decoding: how texts are generated.

    Raises `UserError` where the target is neither a run nor a model, or was trained for another kind of task.
    """
    folder = Path(target)
    config, trained_on = _settings(
        folder,
        task,
        data=options,
        per_device_eval_batch_size=per_device_eval_batch_size,
        max_length=max_length,
        generate_rows=generate_rows,
        generation=decoding,
        bf16=bf16,
        seed=seed,
    )
    generation = config.generation
    if max_new_tokens is not None:  # what is asked for here comes before what the run had, or its preset
        generation = generation.model_copy(update={"max_new_tokens": max_new_tokens})
    loaded = load_task(config.task, config.data)
    if is_run(folder):
        model = load(folder, base=base)
        check_head(target, type(model).__name__, model.config, loaded)
        loaded = with_model_labels(
            loaded, model.config, model_class=type(model).__name__, name=target, given=config.data.labels
        )
    else:
        _check_no_base(base, target)
        own = load_config(target)
        for architecture in filter(own_head, own.architectures or ()):
            check_head(target, architecture, own, loaded)
        loaded = in_labels_of(target, loaded, config.data)
        model = load_model(target, loaded, seed=config.seed)
    check_length(config.max_length, model.config, target)
    tokenizer = prepare_tokenizer(load_tokenizer(target), model)
    with autocast(config.bf16):
        evaluation = evaluate(
            model.to(device()),
            tokenizer,
            loaded,
            batch_size=config.per_device_eval_batch_size,
            max_length=config.max_length,
            generate_rows=config.generate_rows,
            max_new_tokens=config.max_new_tokens,
            decoding=generation,
        )
    changed = (CHANGED,) if trained_on not in (None, loaded.fingerprint) else ()
    return replace(evaluation, labels=loaded.labels, notices=(*loaded.notices, *changed))


def _settings(folder: Path, task: str | None, **given: Any) -> tuple[RunConfig, str | None]:
    """The config of the run (or checkpoint) in `folder`, with what is given in its place; a new one for a model.

    Also gives the fingerprint of the rows that the run was trained on, where the config asks for these again.
    """
    own: dict[str, Any] = {"model": str(folder)}
    trained_on: str | None = None
    for place in (folder, folder.parent):
        if is_run(folder) and (place / RECORD_FILE).is_file():
            record = read_record(place)
            own, trained_on = _found(record, place), record.data.fingerprint
            break
    if task is None or _is_file(own.get("task"), task):
        task = own.get("task")
    if task is None:
        if not folder.exists():
            raise ConfigError(f"no such folder: {folder}: use the folder of a run, or --task for a hub id")
        raise ConfigError(f"{folder} is not a run, so it has no task of its own: use --task")
    evaluated = own.get("data", {}).get("eval")
    if task != own.get("task"):
        trained_on = None
        own = {key: value for key, value in own.items() if key not in ("data", "generate_rows")}
        data = given.get("data") or TaskOptions()
        if Path(task).is_file() and not data.model_fields_set & {"eval", "eval_share"}:
            # A file that is named here is evaluated as a whole, unless a share of it is asked for.
            given["data"] = data.model_copy(update={"eval": task})
    config = read_config(None, **{**own, "task": task, **{k: v for k, v in given.items() if v is not None}})
    return config, trained_on if config.data.eval == evaluated else None


def _found(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The run's config, with its paths as they are seen from here."""
    try:
        own = RunConfig.model_validate(record.config).model_dump(mode="json", include=set(record.config))
    except ValidationError as error:
        raise CheckpointError(f"{folder / RECORD_FILE}: its config is damaged: {first_error(error)}") from None
    own["task"] = record.found(own["task"], folder)
    if (evaluation := own.get("data", {}).get("eval")) is not None:
        own["data"] = {**own["data"], "eval": record.found(evaluation, folder)}
    return own


def _is_file(own: str | None, task: str) -> bool:
    """Whether the run's own task is the file or folder `task`."""
    return own is not None and Path(own).exists() and Path(task).exists() and Path(own).samefile(task)


def generate_target(
    target: str,
    prompts: Sequence[str | Example],
    *,
    base: str | None = None,
    max_new_tokens: int = 64,
    **decoding: Any,
) -> list[str]:
    """What a run's model (or a checkpoint's), or a pretrained one, writes after each prompt; greedy by default.

    Args:
        target: a run's folder, a checkpoint's folder, a hub id or a model's folder.
        prompts: the texts to continue, and the chats (`read_chats`) in which the assistant's turn is next. A chat is
            rendered by the tokenizer's chat template, and the token that ends a turn there ends the text.
        base: where the base of a run is now, if it has moved.
        max_new_tokens: the most tokens to generate.
        decoding: keywords of transformers' `generate`, and `seed`.

    Raises `UnsupportedModel` for a model that writes no text, and `DataError` for an empty prompt, or a chat that the
    template refuses.
    """
    if "" in prompts:
        raise DataError("--prompt: an empty prompt gives the model nothing to continue: use some text")
    folder = Path(target)
    if is_run(folder):
        model = load(folder, base=base)
    else:
        _check_no_base(base, target)
        config = load_config(target)
        model = load_weights(target, class_for(config, TaskKind.GENERATION), config)
    if not model.can_generate():
        raise UnsupportedModel(f"{target} is a {type(model).__name__}, which writes no text: use a language model")
    transformers.set_seed(decoding.pop("seed", 42))
    tokenizer = prepare_tokenizer(load_tokenizer(target), model)
    chats = [prompt for prompt in prompts if isinstance(prompt, Example)]
    ends = {end for chat in chats if (end := turn_end(tokenizer, chat)) is not None}
    read = [chat_prompt(tokenizer, prompt) if isinstance(prompt, Example) else prompt for prompt in prompts]
    texts = generate_texts(
        model.to(device()), tokenizer, read, max_new_tokens=max_new_tokens, strip=False, ends=ends, **decoding
    )
    # A prompt and its text make the whole text. An answer stands by itself, and templates put spaces around it.
    return [text.strip() if isinstance(prompt, Example) else text for prompt, text in zip(prompts, texts, strict=True)]


def _check_no_base(base: str | None, target: str) -> None:
    if base is not None:
        raise ConfigError(f"--base: {target} is no run, so it has no base: leave --base out")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run (a record) or a checkpoint of one (a delta)."""
    return (folder / RECORD_FILE).is_file() or _holds_delta(folder)


def _holds_delta(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file()
