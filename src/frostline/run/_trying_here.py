"""`auto` for a model in memory: trials on copies of it, and a plan with its learning rate and number of steps."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Subset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from frostline.checkpoints import quiet_libraries
from frostline.core.seeding import derive_seed
from frostline.core.sizes import parse_duration
from frostline.plan import Plan
from frostline.processes import running
from frostline.run._judge import JudgedTrainer, clock_of
from frostline.run._tournament import Tournament
from frostline.run._trials import FAR, Attempt, Terms
from frostline.run._trying import warm_up
from frostline.strategies import AutoOptions, Situation, contenders, yardstick

Collate = Callable[[Any], Mapping[str, Any]]


def tried_plan(model: Any, situation: Situation, options: AutoOptions, data: Any, collate: Collate) -> Plan:
    """The plan that trials choose within a budget of time, with its learning rate and number of steps.

    The trials train copies of the model, which are thrown away: the training that follows begins anew, and their whole
    time is lost of the budget.

    Args:
        model: the model, which does not change.
        situation: of the model, with the budget and the work.
        options: those of `auto`.
        data: tokenized rows, `FEWEST_ROWS` or more.
        collate: makes batches of them.

    Raises `PlanError` when nothing fits the budget.
    """
    time, work, seed = situation.budget.time, situation.workload, situation.seed
    order = list(range(len(data)))
    random.Random(derive_seed(seed, "held out")).shuffle(order)
    count = min(128, len(data) // 20)
    held, rest = Subset(data, sorted(order[:count])), Subset(data, sorted(order[count:]))
    group = running()
    step_rows = work.per_device_train_batch_size * work.gradient_accumulation_steps * group.count
    duration = isinstance(time, str)
    terms = Terms(
        share=None if duration else float(cast(float, time)),
        seconds=parse_duration(str(time), "time") if duration else None,
        lost=options.trials,
        rate=None,
        rows=len(rest),
        step_rows=step_rows,
        step_tokens=step_rows * work.length,
        epochs=work.num_train_epochs,
    )
    clock = clock_of(duration)

    def attempt(one: Attempt) -> JudgedTrainer:
        settings = one.option.workload
        arguments = TrainingArguments(
            str(one.folder),
            use_cpu=not torch.accelerator.is_available(),
            seed=seed,
            max_steps=FAR,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            per_device_eval_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            activation_checkpointing=settings.activation_checkpointing,
            learning_rate=one.learning_rate,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": 1},
            warmup_steps=warm_up(one.option, terms),
            bf16=settings.bf16,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
        )
        trainer = JudgedTrainer(
            copy.deepcopy(model),
            arguments,
            plan=one.option.plan,
            train_dataset=rest,
            data_collator=collate,
            activation_cache="auto" if settings.activation_cache else "off",
        )
        trainer.remove_callback(PrinterCallback)
        trainer.held_out, trainer.first_steps, trainer.clock = held, one.first_steps, clock
        return trainer

    with tempfile.TemporaryDirectory(prefix="frostline-") as folder, quiet_libraries():
        tournament = Tournament(
            terms,
            lambda: yardstick(situation, options),
            lambda share: contenders(situation, options, share),
            attempt,
            clock,
            Path(folder),
            lambda line: None,
            {"rows": _identity(data), "options": options.model_dump(), "seed": seed, "workload": work.model_dump()},
            {},
        )
        chosen = tournament.play()["chosen"]
        option = tournament.winner()
    steps = max(1, min(chosen["affordable_steps"] - chosen["from_step"], chosen["max_steps"]))
    return option.plan.model_copy(update={"learning_rate": chosen["learning_rate"], "max_steps": steps})


def _identity(rows: Any) -> str:
    """A hash over the rows, in their order."""
    found = hashlib.sha256()
    for index in range(len(rows)):
        row = {name: _plain(value) for name, value in rows[index].items()}
        found.update(json.dumps(row, sort_keys=True, default=str).encode())
    return found.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
