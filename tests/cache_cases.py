"""Small trainings with a frozen bottom, for the tests of the activation cache."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from architectures import AUTO_CLASSES, natural_task, tiny
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_above, load_config, trained_tensors
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Plan
from frostline.surgery import apply
from tolerances import after_sgd

Row = dict[str, Any]


def bottom_plan(model: Any, boundary: int, top: Any = None, norm: Any = None) -> Plan:
    """Blocks from `boundary` on train; what is tied or read below stays frozen."""
    anatomy = find_anatomy(model)
    return Plan(
        blocks=(Frozen(),) * boundary + (top or Full(),) * (len(anatomy.blocks) - boundary),
        final_norm=norm or Full(),
        head=Frozen() if anatomy.tied else Full(),
    )


def frozen_by_hand(model: Any, plan: Plan) -> Any:
    """`model` with the tensors frozen by `requires_grad` that `plan` freezes."""
    planned = copy.deepcopy(model)
    apply(plan, planned)
    trained = {name for name, parameter in planned.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def rows_for(model: Any, count: int = 12, seed: int = 1) -> list[Row]:
    """Rows of 4 to 9 tokens without padding; in half of a language model's tokens no label."""
    random = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for i in range(count):
        length = 4 + i % 6
        ids = torch.randint(3, model.config.vocab_size, (length,), generator=random).tolist()
        row: Row = {"input_ids": ids, "attention_mask": [1] * length}
        if "Classification" in type(model).__name__:
            row["labels"] = i % model.config.num_labels
        elif model.config.is_encoder_decoder:
            row["labels"] = torch.randint(3, model.config.vocab_size, (3 + i % 4,), generator=random).tolist()
        else:
            row["labels"] = [-100] * (length // 2) + ids[length // 2 :]
        rows.append(row)
    return rows


def collate(rows: Sequence[Row], on_the_left: bool = False) -> dict[str, torch.Tensor]:
    """Padded on the right."""
    filled: dict[str, torch.Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            longest = max(map(len, values))
            pads = [[-100 if name == "labels" else 0] * (longest - len(value)) for value in values]
            values = [pad + value if on_the_left else value + pad for pad, value in zip(pads, values, strict=True)]
        filled[name] = torch.tensor(values)
    return filled


def collate_on_the_left(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return collate(rows, on_the_left=True)


def arguments(folder: Path, kind: type[TrainingArguments] = TrainingArguments, **options: Any) -> TrainingArguments:
    """Nine steps of SGD, after which weights can be compared (see `tolerances`)."""
    given: dict[str, Any] = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.1,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(output_dir=str(folder), **given | options)


class StopAt(TrainerCallback):
    """Ends the process's part in the run in the middle of a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            raise KeyboardInterrupt


def ends_at(step: int) -> Any:
    """A trainer's method that stops the training."""
    own, count = Trainer._get_grad_norm, [0]

    def method(self: Any, *args: Any, **given: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            raise KeyboardInterrupt
        return own(self, *args, **given)

    return method


def cache_trainer(
    folder: Path,
    model: Any,
    mode: Any = "on",
    boundary: int = 2,
    *,
    plan: Plan | None = None,
    rows: Any = None,
    collator: Any = collate,
    limit: int | None = None,
    loss_positions: bool = True,
    **options: Any,
) -> Trainer:
    """A trainer of `model` above `boundary`; `options` are those of transformers."""
    return Trainer(
        model,
        arguments(folder, **options),
        plan=plan or bottom_plan(model, boundary),
        train_dataset=rows_for(model) if rows is None else rows,
        eval_dataset=rows_for(model, 5, seed=2),
        data_collator=collator,
        activation_cache=mode,
        activation_cache_limit=limit,
        loss_positions=loss_positions,
    )


def train(*given: Any, **options: Any) -> Trainer:
    """`cache_trainer`, trained."""
    gc.freeze()  # a training collects garbage three times, and would look for it in all of transformers
    trainer = cache_trainer(*given, **options)
    trainer.train()
    return trainer


def trained(folder: Path, name: str, mode: str, boundary: int = 2, top: Any = None, **options: Any) -> Trainer:
    """A tiny model of an architecture, trained."""
    model = tiny(name, options.pop("task", None))
    return train(folder, model, mode, plan=bottom_plan(model, boundary, top), **options)


def streaming_trainer(folder: Path, model: Any, boundary: int, collator: Any = collate, **options: Any) -> Trainer:
    """A trainer as `cache_trainer`'s, of a checkpoint whose bottom is read block by block."""
    place = str(folder / "base")
    model.save_pretrained(place)
    model_class = AUTO_CLASSES[natural_task(model.config.model_type)]
    part, load = load_above(place, model_class, load_config(place), boundary, str(model.dtype).removeprefix("torch."))
    return Trainer(
        part,
        arguments(folder, **options),
        plan=bottom_plan(model, boundary),
        train_dataset=rows_for(model),
        eval_dataset=rows_for(model, 5, seed=2),
        data_collator=collator,
        load_bottom=load,
    )


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same_training(with_it: Trainer, without: Trainer, bf16: bool = False) -> None:
    """The cache was used, and gave the losses and, after SGD in float32, the weights of training without it."""
    assert with_it.cache_report.used, with_it.cache_report.reason
    assert not without.cache_report.used
    assert losses(with_it) == pytest.approx(losses(without), abs=2e-2 if bf16 else 1e-4)
    args = without.args
    if args.optim == "sgd" and not bf16:
        got = trained_tensors(with_it.model)
        near = after_sgd(args.learning_rate, without.state.global_step, args.max_grad_norm)
        for key, tensor in trained_tensors(without.model).items():
            torch.testing.assert_close(got[key], tensor, atol=near, rtol=0, msg=key)
