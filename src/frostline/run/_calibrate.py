"""How fast this machine trains a model: steps of a small part of it are timed, block by block.

The part is the model of the config with few blocks, random weights, and random rows of the workload's batch size and
length. It trains under one plan in which every kind of work occurs. The time of each block gives a speed, which is
valid for the whole model under any plan.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import embedding
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import Anatomy, find_anatomy
from frostline.checkpoints import quiet_libraries
from frostline.core.cache import default_root, keep
from frostline.core.errors import UserError
from frostline.core.files import read_json
from frostline.core.labels import IGNORED
from frostline.cost import Speed, StepTimes, Workload, fit_speed
from frostline.plan import BlockMode, Frozen, Full, Lora, Plan
from frostline.processes import running
from frostline.run._device import device
from frostline.run._optim import flora_of, optim_arguments
from frostline.run._timeline import CLOCKS, FEWEST, WARM_UP, Clock, Clocks, StepsInTime, TimedTrainer, Timeline
from frostline.run._versions import versions
from frostline.surgery import quantize_frozen

BLOCKS = 5
"""Blocks of the part in each stack: one of each kind, and the last."""
MOST_STEPS = 50
_BESIDE = {
    "rows",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "devices",
    "processes",
    "optimizer_in_backward",
    "activation_cache",
    "stored_share",
}
"""The parts of a workload that a speed does not depend on."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What was timed: a step of `plan` on `anatomy`'s model, for `workload`, by each clock."""

    plan: Plan
    anatomy: Anatomy
    workload: Workload
    times: Mapping[Clock, StepTimes]

    def speed(self, clock: Clock = "wall") -> Speed:
        return fit_speed(self.plan, self.anatomy, self.workload, self.times[clock])


def calibrate(config: Any, model_class: Any, workload: Workload, *, root: Path | None = None) -> Speed:
    """The speed of this machine at training the model of `config` and `model_class`, a transformers class.

    It is valid for the batch size, length and precision of `workload`. It is measured once, and then read from `root`,
    as long as machine, threads, processes, libraries, the model's shape and what the workload computes stay the same.

    Args:
        config: the model's config.
        model_class: the model's class.
        workload: the work that the speed is for.
        root: the folder of measured speeds; by default in `core.cache.default_root()`.
    """
    single = _one_batch(workload)
    part = _with_few_blocks(config)
    path = (root or default_root()) / "speed" / f"{_identity(part, model_class, single)}.json"
    group = running()
    if (known := group.once(lambda: _known(path))) is not None:
        return known
    speed = group.same(measure(config, model_class, workload).speed())
    group.once(lambda: keep(path, speed.model_dump()))
    return speed


def _known(path: Path) -> Speed | None:
    if not path.is_file():
        return None
    try:
        return Speed.model_validate(read_json(path, "speed"))
    except (UserError, OSError, ValueError) as error:
        log.warning("%s: measured again", error)
        return None


def measure(
    config: Any,
    model_class: Any,
    workload: Workload,
    *,
    seconds: float = 10.0,
    clocks: Clocks = CLOCKS,
    callbacks: Sequence[TrainerCallback] = (),
) -> Calibration:
    """Time steps of a part of the model, after a warm-up. No weights are read.

    Args:
        config, model_class, workload: as in `calibrate`.
        seconds: how long to measure.
        clocks: what reads the time.
        callbacks: further callbacks of the trainer.
    """
    single = _one_batch(workload)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder, quiet_libraries():
        torch.manual_seed(0)
        model = _random_model(_with_few_blocks(config), model_class, single)
        anatomy = find_anatomy(model)
        plan = _plan_of_all_kinds(anatomy)
        timeline = Timeline(clocks)
        trainer = TimedTrainer(
            model,
            _arguments(single, folder),
            plan=plan,
            activation_cache="off",
            optimizer_cls_and_kwargs=flora_of(single.optim, single.optim_args, seed=0),
            loss_positions=single.loss_positions,
            train_dataset=_rows(model, anatomy, single),
            callbacks=[StepsInTime(timeline, seconds), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.timeline = timeline
        if single.frozen_bits:
            quantize_frozen(model, anatomy, single.frozen_bits)
        timeline.watch(model, anatomy)
        trainer.train()
        embeddings = _embedding_gradient(model, single, clocks)
    times = {clock: timeline.times(clock, embeddings[clock]) for clock in clocks}
    return Calibration(plan, anatomy, single, times)


def _one_batch(workload: Workload) -> Workload:
    """The workload with what a speed does not depend on left at its defaults."""
    return Workload.model_validate(workload.model_dump(exclude=_BESIDE))


def _with_few_blocks(config: Any) -> Any:
    config = copy.deepcopy(config)
    if getattr(text := config.get_text_config(), "pad_token_id", None) is None:
        text.pad_token_id = 0  # a classifier needs one for batches
    for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers"):
        if hasattr(config, name):
            setattr(config, name, BLOCKS)
    if getattr(config, "layer_types", None):
        config.layer_types = list(islice(cycle(config.layer_types), BLOCKS))
    return config


def _identity(config: Any, model_class: Any, workload: Workload) -> str:
    content = {
        "config": {key: value for key, value in config.to_dict().items() if key != "_name_or_path"},
        "class": model_class.__name__,
        "workload": workload.model_dump(),
        "machine": (platform.node(), versions(), running().count),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _random_model(config: Any, model_class: Any, workload: Workload) -> Any:
    make = getattr(model_class, "from_config", None) or model_class._from_config
    options = {"attn_implementation": "eager"} if workload.attention == "eager" else {}
    with device():
        return make(config, dtype=getattr(torch, workload.frozen_dtype), **options)


def _plan_of_all_kinds(anatomy: Anatomy) -> Plan:
    """The plan that `fit_speed` needs: the first block frozen, the last one trained, and all kinds between them."""
    between: cycle[BlockMode] = cycle((Full(), Frozen(), Lora()))
    blocks = (Frozen(), *islice(between, len(anatomy.blocks) - 2), Full())
    return Plan(blocks=blocks, head=Frozen() if anatomy.tied else Full())


def _rows(model: Any, anatomy: Anatomy, workload: Workload) -> list[dict[str, Any]]:
    """Random rows; each ends in one token of padding, so that there is a mask, as there is in most batches."""
    rows = []
    count = workload.per_device_train_batch_size * 4
    for ids in torch.randint(3, anatomy.vocab_size, (count, workload.length)).tolist():
        row = {"input_ids": ids, "attention_mask": [1] * (workload.length - 1) + [0]}
        if workload.texts > 1:
            row = {name: [values] * workload.texts for name, values in row.items()}
        rows.append(row | _labels(model.config, anatomy, workload, ids))
    return rows


def _labels(config: Any, anatomy: Anatomy, workload: Workload, ids: list[int]) -> dict[str, Any]:
    """Labels for a row of token ids, of the kind that the model's head needs."""
    length, head = workload.length, anatomy.model_class
    if "ForQuestionAnswering" in head:
        return {"start_positions": ids[0] % length, "end_positions": ids[1] % length}
    if "ForMultipleChoice" in head:
        return {"labels": ids[0] % workload.texts}
    if "ForSequenceClassification" in head:
        marks = [float(token % 2) for token in ids[: config.num_labels]]
        kinds = {"regression": marks[0], "multi_label_classification": marks}
        return {"labels": kinds.get(config.problem_type, ids[0] % config.num_labels)}
    if anatomy.encoder_decoder:
        return {"labels": (ids * -(-(workload.label_tokens or 1) // length))[: workload.label_tokens or length]}
    unlabelled = length - max(2, round(workload.label_share * length))
    classes = config.num_labels if "ForTokenClassification" in head else anatomy.vocab_size
    return {"labels": [IGNORED] * unlabelled + [token % classes for token in ids[unlabelled:]]}


def _arguments(workload: Workload, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        use_cpu=not torch.accelerator.is_available(),
        max_steps=WARM_UP + MOST_STEPS,
        per_device_train_batch_size=workload.per_device_train_batch_size,
        learning_rate=1e-5,
        **optim_arguments(workload.optim, workload.optim_args),
        bf16=workload.bf16,
        activation_checkpointing=workload.activation_checkpointing,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )


def _embedding_gradient(model: Any, workload: Workload, clocks: Clocks) -> dict[Clock, float]:
    """Seconds that the gradient of the token embedding takes, for each of its parameters, by each clock."""
    table = model.get_input_embeddings().weight.detach().float().requires_grad_()
    ids = torch.randint(3, len(table), (workload.batch_texts, workload.length), device=table.device)
    timeline = Timeline(clocks)
    for _ in range(WARM_UP + FEWEST):
        states: Any = embedding(ids, table)
        timeline.until_now("rest")
        states.backward(torch.ones_like(states))
        table.grad = None
        timeline.until_now("gradient")
        timeline.end_step()
    return {clock: timeline.median("gradient", clock) / table.numel() for clock in clocks}
