"""One run end to end: config -> model, data, schedule, trainer, record."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from frostline.core.errors import FrostlineError, UserError
from frostline.core.files import read_json, write_json, write_text
from frostline.cost import Workload, predict
from frostline.engine import (
    MemoryMeter,
    ProgressBar,
    StepMeter,
    Trainer,
    fingerprint,
    load_tokenizer,
    save_delta,
)
from frostline.plan import Plan, document, save_plan
from frostline.records import DataFacts, Measured, ModelFacts, RunMetrics, RunRecord, now, read_record, write_record
from frostline.run.config import RunConfig
from frostline.run.setup import load_model
from frostline.run.versions import versions
from frostline.strategies import Situation, choose_schedule
from frostline.tasks import (
    Collator,
    Encoded,
    Evaluation,
    Task,
    TaskKind,
    encode,
    evaluate,
    load_task,
    majority_share,
    model_kind,
    prepare_tokenizer,
)

CONFIG_FILE = "config.json"
PLAN_FILE = "plan.yaml"
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class _Prepared:
    """Everything that a run needs, loaded."""

    config: RunConfig
    task: Task
    model: Any
    tokenizer: Any
    trainer: Trainer
    train_rows: Encoded
    eval_rows: Encoded
    autocast: bool
    steps: StepMeter


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> RunRecord:
    """Train what `config` says and record it in its folder: `run.json`, the plan, the delta, the answers.

    With `resume` training goes on from the folder's last checkpoint, and ends with the weights of a run that
    was never stopped; without one, it starts again. Progress goes to `console`.

    Raises `UserError` for bad input (before anything is written) and `TrainingError` when the loss is not a
    number; what was saved before stays whole.
    """
    console = console or Console(stderr=True, quiet=True)
    folder = config.folder
    checkpoint = _check_folder(folder, config, resume)
    if config.threads:
        torch.set_num_threads(config.threads)
    with MemoryMeter() as memory:
        with _quiet_libraries():
            prepared = _prepare(config, folder)
        record = _start(prepared)
        for notice in record.notices:
            console.print(f"note: {notice}")
        write_record(record, folder)
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
        save_plan(Plan.read(record.plan), folder / PLAN_FILE)
        try:
            return _run(prepared, record, folder, checkpoint, memory, console)
        except BaseException as error:
            failed = record.model_copy(update={"status": "failed", "error": _one_line(error), "finished": now()})
            with contextlib.suppress(FrostlineError, OSError):
                write_record(failed, folder)
            raise


def _run(
    prepared: _Prepared, record: RunRecord, folder: Path, checkpoint: str | None, memory: MemoryMeter, console: Console
) -> RunRecord:
    config, trainer = prepared.config, prepared.trainer
    before = _before(prepared, folder, checkpoint, console)
    bar = ProgressBar(console, config.strategy, memory, prepared.steps)
    trainer.add_callback(bar)
    memory.restart_peak()
    try:
        begun = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - begun
    finally:
        bar.close()
    peak = memory.peak_bytes
    save_delta(prepared.model, folder)
    prepared.tokenizer.save_pretrained(folder)
    after = _measure(prepared, console)
    _write_predictions(after, folder)
    median = prepared.steps.median
    tokens = config.batch_size * config.gradient_accumulation * _mean_length(config, prepared.train_rows)
    finished = record.model_copy(
        update={
            "status": "finished",
            "finished": now(),
            "measured": Measured(
                train_seconds=seconds,
                seconds_per_step=median,
                cold_pass_seconds=0.0,
                peak_memory_bytes=peak,
                steps=trainer.state.global_step,
                tokens_per_second=tokens / median if median else None,
            ),
            "metrics": RunMetrics(before=before, after=after.metrics, history=_history(trainer)),
        }
    )
    write_record(finished, folder)
    return finished


def _prepare(config: RunConfig, folder: Path) -> _Prepared:
    task = load_task(config.task, config.data)
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, task, seed=config.seed)
    prepare_tokenizer(tokenizer, model)
    _check_length(config, model.config)
    kind = model_kind(model.config)
    train_rows, eval_rows = (encode(task, split, tokenizer, config.max_length, kind) for split in ("train", "eval"))
    arguments = _arguments(config, folder)
    steps = StepMeter()
    trainer = Trainer(
        model,
        arguments,
        schedule=choose_schedule(config.strategy, Situation.of(model, config.seed)),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=Collator(tokenizer, pad_to=config.max_length if config.pad_to_max_length else None),
        processing_class=tokenizer,
        callbacks=[steps],
    )
    trainer.remove_callback(PrinterCallback)
    return _Prepared(config, task, model, tokenizer, trainer, train_rows, eval_rows, arguments.bf16, steps)


def _check_length(config: RunConfig, model_config: Any) -> None:
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and positions > 0 and config.max_length > positions:
        raise UserError(f"max_length: {config.max_length} is more than the {positions} positions of {config.model}")


def _arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        seed=config.seed,
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch" if config.optimizer == "adamw" else "sgd",
        bf16=config.precision == "bfloat16" or (config.precision == "auto" and bfloat16_is_fast()),
        activation_checkpointing=config.checkpointing,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=config.keep_checkpoints,
        logging_steps=config.log_every,
        report_to=list(config.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies matrices in bfloat16 by hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def workload_of(config: RunConfig, rows: int, length: int, frozen_dtype: str) -> Workload:
    """The workload that a run's cost is predicted for."""
    steps_per_epoch = max(1, rows // (config.batch_size * config.gradient_accumulation))
    return Workload(
        rows=rows,
        length=length,
        batch=config.batch_size,
        epochs=config.steps / steps_per_epoch if config.steps else config.epochs,
        dtype="bfloat16"
        if config.precision == "bfloat16" or (config.precision == "auto" and bfloat16_is_fast())
        else "float32",
        optimizer=config.optimizer,
        frozen_dtype=frozen_dtype,
        checkpointing=config.checkpointing,
    )


def _start(prepared: _Prepared) -> RunRecord:
    config, applied = prepared.config, prepared.trainer.applied
    length = round(_mean_length(config, prepared.train_rows))
    workload = workload_of(config, len(prepared.train_rows), length, applied.base_dtype)
    prediction = predict(applied.plan, applied.anatomy, workload)
    task = prepared.task
    lengths = prepared.train_rows.lengths
    return RunRecord(
        status="running",
        started=now(),
        config=config.model_dump(mode="json"),
        plan=document(applied.plan),
        model=ModelFacts(
            name=config.model,
            model_class=applied.anatomy.model_class,
            model_type=applied.anatomy.model_type,
            dtype=applied.base_dtype,
            blocks=len(applied.anatomy.blocks),
            fingerprint=fingerprint(applied.base),
        ),
        data=DataFacts(
            task=task.name,
            kind=str(task.kind),
            source=task.source,
            train_rows=len(task.train),
            eval_rows=len(task.eval),
            truncated_rows=prepared.train_rows.truncated,
            mean_length=sum(lengths) / len(lengths),
            metric=task.metric,
            majority_share=majority_share(task) if task.kind is TaskKind.CLASSIFICATION else None,
            fingerprint=task.fingerprint,
        ),
        seed=config.seed,
        versions=versions(),
        trainable_parameters=sum(p.numel() for p in prepared.model.parameters() if p.requires_grad),
        total_parameters=sum(p.numel() for p in prepared.model.parameters()),
        predicted=prediction.document(),
        notices=(*applied.notices, *_cut_notice(prepared)),
    )


def _cut_notice(prepared: _Prepared) -> list[str]:
    cut, rows = prepared.train_rows.truncated, len(prepared.train_rows)
    return [f"{cut} of {rows} training rows are cut to {prepared.config.max_length} tokens"] if cut else []


def _mean_length(config: RunConfig, rows: Encoded) -> float:
    """The mean length of a batch, padding included: tokens per row that the model computes."""
    if config.pad_to_max_length:
        return config.max_length
    lengths = rows.lengths
    mean = sum(lengths) / len(lengths)
    # The longest of a batch of n: the mean of the top 1/n share of all lengths.
    longest = sorted(lengths, reverse=True)[: max(1, len(lengths) // config.batch_size)]
    return max(mean, sum(longest) / len(longest))


def _check_folder(folder: Path, config: RunConfig, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises `UserError` when the folder holds another run."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: {folder} is a file, a folder is wanted")
    if not (folder / "run.json").is_file():
        if resume:
            raise UserError(f"{folder} holds no run to resume: leave --resume out")
        return None
    record = read_record(folder)
    if not resume:
        raise UserError(f"{folder} already holds a {record.status} run: give another out, or --resume to go on with it")
    if record.status == "finished":
        raise UserError(f"the run in {folder} is finished: there is nothing to resume")
    wanted = config.model_dump(mode="json")
    for key in wanted:
        if key not in ("out", "threads") and record.config.get(key) != wanted[key]:
            raise UserError(f"cannot resume {folder}: {key} was {record.config.get(key)!r}, now {wanted[key]!r}")
    last: str | None = transformers.trainer_utils.get_last_checkpoint(str(folder))
    return last


def _before(prepared: _Prepared, folder: Path, checkpoint: str | None, console: Console) -> dict[str, float]:
    """Quality before the first step; read back when the run is resumed, whose model has moved on."""
    path = folder / "before.json"
    if checkpoint is not None and path.is_file():
        return dict(read_json(path, "quality before training"))
    metrics = _measure(prepared, console).metrics
    write_json(path, metrics)
    return metrics


def _measure(prepared: _Prepared, console: Console) -> Evaluation:
    config = prepared.config
    with console.status("evaluating"), autocast(prepared.autocast):
        return evaluate(
            prepared.model,
            prepared.tokenizer,
            prepared.task,
            batch_size=config.eval_batch_size,
            max_length=config.max_length,
            generate_rows=config.generate_rows,
            max_new_tokens=config.max_new_tokens,
        )


def autocast(enabled: bool) -> Any:
    """bfloat16 autocast on this machine's device, if enabled."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16, enabled=enabled)


def _history(trainer: Trainer) -> tuple[dict[str, float], ...]:
    return tuple({key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history)


def _write_predictions(evaluation: Evaluation, folder: Path) -> None:
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in evaluation.predictions)
    write_text(folder / PREDICTIONS_FILE, "".join(lines))


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
