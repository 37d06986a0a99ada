"""A trainer whose rounds run in other processes. For its user it is like any other trainer."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from frostline.anatomy import Anatomy
from frostline.bottom import CannotCut, Cut, find_cut
from frostline.checkpoints import put_tensors
from frostline.core.errors import CheckpointError, ConfigError, PlanError, UnsupportedModel
from frostline.engine import Trainer, report_live
from frostline.plan import Forward, Plan, Split
from frostline.split._job import ClientRows, Job, Stepping, rounds_of, share_rows
from frostline.split._parts import save_parts
from frostline.split._session import Session

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


@dataclass(frozen=True)
class SplitReport:
    """What a split training did.

    Attributes:
        clients: number of clients.
        cut: block at which the model was cut.
        average_every: rounds between two averages of the clients' matrices.
        rows: number of rows of each client.
        rounds: number of rounds.
        bytes: bytes sent, by kind: `activations` and `labels` (with marks and sizes) to the server, `gradients` to the
            clients, `matrices_up` and `matrices_down` to average the clients' matrices.
        seconds: of all rounds except the first, which waits for the processes to start.
        peak_memory_bytes: peak of private memory of each process.
    """

    clients: int
    cut: int
    average_every: int
    rows: tuple[int, ...]
    rounds: int
    bytes: dict[str, int]
    seconds: float
    peak_memory_bytes: dict[str, int]

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"rows": list(self.rows)}


class SplitTrainer(Trainer):
    """A `Trainer` that cuts the model at a block and trains it in a server and several clients (SplitLoRA).

    Each client is a process. It holds the embeddings, the blocks below the cut and its share of the rows. In a round,
    every client sends the states and labels of one batch to the server. The server runs all batches through the upper
    part as one batch, makes a step, and sends the gradients back. Then every client makes a step. Every `average_every`
    rounds and at the end, the clients' trained matrices are averaged, weighted by their numbers of rows. After
    training, the model in this process has the trained values.

    A step is a round, with `per_device_train_batch_size` rows of every client. An epoch is over when the client with
    the most rows has used them all. Gradients are clipped in each part separately. Nothing is saved or evaluated
    during training. `report` says what was done.

    Args:
        model: a decoder or an encoder.
        args: as for `transformers.Trainer`.
        split: where to cut, how many clients, how often to average.
        options: as for `Trainer`.

    Raises `ConfigError`, `PlanError` or `UnsupportedModel` for a model that cannot be cut there, for fewer rows than
    clients, and for arguments that split training does not support.
    """

    control: TrainerControl

    def __init__(
        self, model: Any = None, args: TrainingArguments | None = None, *positional: Any, split: Split, **options: Any
    ) -> None:
        if args is not None:
            _check(args)
        super().__init__(model, args, *positional, **options)
        if self.optimizer_cls_and_kwargs is not None:
            raise ConfigError(
                f"split training cannot use optimizer_cls_and_kwargs: use optim with one of {', '.join(OPTIMIZERS)}"
            )
        if not self.schedule.settled:
            raise PlanError("schedule: split training cannot change its plan during training: use a fixed plan")
        self.split = split
        self.report: SplitReport | None = None
        _check_plan(self.applied.plan, split)
        self._cut = _cut(self.model, self.applied.anatomy, split)
        self._shares = share_rows(len(self.train_dataset or ()), split.clients, self.args.seed)

    def train(self, resume_from_checkpoint: str | bool | None = None, *_: Any, **__: Any) -> TrainOutput:
        """Train in other processes until the last round. Raises `TrainingError` when one of them fails or ends."""
        if resume_from_checkpoint:
            raise CheckpointError("split training saves no checkpoints, so it cannot resume: start it without resume")
        report_live(self, lambda: self.applied)
        with tempfile.TemporaryDirectory(prefix="frostline-split-") as folder:
            job, client_rows = self._work(Path(folder))
            save_parts(self.model, job.folder)
            with Session(job, client_rows) as session:
                mean_loss, seconds = self._follow(session, job)
            put_tensors(self.model, session.trained, "the result of split training", more=False)
        self.report = SplitReport(
            clients=job.split.clients,
            cut=job.split.cut,
            average_every=job.split.average_every,
            rows=job.shares,
            rounds=job.rounds,
            bytes=session.sent,
            seconds=seconds,
            peak_memory_bytes=session.peak_memory_bytes,
        )
        return TrainOutput(job.rounds, mean_loss, {})

    def _follow(self, session: Session, job: Job) -> tuple[float, float]:
        """Call the callbacks in every round. Gives the mean loss, and the seconds of all rounds except the first."""
        args, handler = self.args, self.callback_handler
        self.state = TrainerState(max_steps=job.rounds, is_local_process_zero=True, is_world_process_zero=True)
        self.state.compute_steps(args, job.rounds)
        self.control = handler.on_train_begin(args, self.state, self.control)
        self.control = handler.on_step_begin(args, self.state, self.control)
        losses: list[float] = []
        logged, begun = 0, time.perf_counter()
        for loss in session.rounds():
            if not losses:
                begun = time.perf_counter()
            losses.append(loss)
            self._loss = loss
            self.state.global_step = len(losses)
            self.state.epoch = len(losses) * args.per_device_train_batch_size / max(job.shares)
            self.control = handler.on_step_end(args, self.state, self.control)
            if self.control.should_log:
                self.log({"loss": sum(losses[logged:]) / (len(losses) - logged)})
                logged = len(losses)
            if len(losses) < job.rounds:
                self.control = handler.on_step_begin(args, self.state, self.control)
        seconds = time.perf_counter() - begun
        self.control = handler.on_train_end(args, self.state, self.control)
        return sum(losses) / len(losses), seconds

    def _work(self, folder: Path) -> tuple[Job, list[ClientRows]]:
        args, applied, rows = self.args, self.applied, self.train_dataset
        shares = tuple(map(len, self._shares))
        batch_size = args.per_device_train_batch_size
        rounds = args.max_steps if args.max_steps > 0 else rounds_of(shares, batch_size, args.num_train_epochs)
        job = Job(
            folder=folder,
            model_class=applied.anatomy.model_class,
            config=applied.config,
            dtype=applied.base_dtype,
            plan=applied.plan,
            seed=args.seed,
            split=self.split,
            cut=self._cut,
            stepping=self._how_to_step(rounds),
            shares=shares,
            device=args.device,
            autocast=torch.bfloat16 if args.bf16 else None,
        )
        collate = self.data_collator
        if args.remove_unused_columns:
            collate = self._get_collator_with_removed_columns(collate)
        client_rows = [
            ClientRows(client, [dict(rows[index]) for index in indices], collate, batch_size)
            for client, indices in enumerate(self._shares)
        ]
        return job, client_rows

    def _how_to_step(self, rounds: int) -> Stepping:
        args = self.args
        optimizer, options = self.get_optimizer_cls_and_kwargs(args, self.model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return Stepping(
            optimizer=optimizer,
            options=options,
            rates={
                names[id(parameter)]: (group["lr"], group["weight_decay"])
                for group in self._parameter_groups(self.model)
                for parameter in group["params"]
            },
            schedule=str(args.lr_scheduler_type.value),
            warmup=args.get_warmup_steps(rounds),
            rounds=rounds,
            max_norm=args.max_grad_norm or 0.0,
        )


def _check(args: TrainingArguments) -> None:
    supported = {
        "gradient_accumulation_steps": 1,
        "activation_checkpointing": False,
        "fp16": False,
        "world_size": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    for name, only in supported.items():
        if (given := getattr(args, name)) != only:
            raise ConfigError(f"{name}: split training does not support {_setting(given)}: use {name}={_setting(only)}")
    if args.optim not in OPTIMIZERS:
        raise ConfigError(
            f"optim: split training does not support {_setting(args.optim)}: use one of {', '.join(OPTIMIZERS)}"
        )


def _setting(value: Any) -> str:
    """A value of `TrainingArguments` as a user writes it."""
    return str(getattr(value, "value", value)).lower()


def _check_plan(plan: Plan, split: Split) -> None:
    if plan.forward != Forward() or plan.embeddings.mode != "frozen":
        raise PlanError(
            "split training needs frozen embeddings and an unchanged forward pass (forward): use another plan, "
            "such as lora"
        )
    if plan.boundary >= split.cut:
        raise ConfigError(
            f"cut: {split.cut}: the plan trains nothing below block {plan.boundary}, so a client would have nothing to "
            f"train: use {plan.boundary + 1} or more"
        )


def _cut(model: Any, anatomy: Anatomy, split: Split) -> Cut:
    blocks = len(anatomy.blocks)
    if not 0 < split.cut < blocks:
        raise ConfigError(
            f"cut: {split.cut} of {blocks} blocks: each part needs at least one block: use 1 to {blocks - 1}"
        )
    try:
        cut = find_cut(model, anatomy, split.cut, weightless=True)
    except CannotCut as error:
        raise UnsupportedModel(f"cut: the model cannot be cut in two parts: {error}") from error
    if len({block.stack for block in anatomy.blocks}) > 1 or cut.running:
        raise UnsupportedModel(
            f"cut: a {anatomy.model_type} model would have to send more than one state at the cut: use a decoder or "
            "an encoder"
        )
    return cut
