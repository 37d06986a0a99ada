"""The trainer whose rounds run in other processes: to who calls `train`, it is a trainer like any other."""

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
from frostline.engine import Trainer
from frostline.plan import Forward, Plan, Split
from frostline.split._job import ClientRows, Job, Stepping, deal, rounds_of
from frostline.split._parts import save_parts
from frostline.split._session import Session

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


@dataclass(frozen=True)
class SplitReport:
    """What a split training came to.

    `rows` are the clients' shares. `bytes` went over the wires, by kind: `activations` and `labels` (with masks and
    sizes) up, `gradients` down, `matrices_up` and `matrices_down` to average the clients' matrices. `seconds` are those
    of all rounds but the first, which waits for the processes to start. Peaks of private memory are by process.
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

    Each client, a process of its own, holds the embeddings and the blocks below the cut, and its share of the rows. In
    a round every client sends the states of one batch, and its labels, to the server, which passes all batches through
    the upper part as one, steps, and sends the gradients back; every client then steps. Now and then, and at the end,
    the clients' trained matrices are averaged, weighted by their rows. Afterwards the model here has what was trained.

    A step is a round, of `per_device_train_batch_size` rows of every client; an epoch is over when the client with the
    most rows has passed over them. Gradients are clipped in each part on its own. Nothing is saved or evaluated on the
    way. `report` tells what it came to.

    Raises `UserError` for a model that cannot be cut there, for fewer rows than clients, and for arguments that have no
    meaning here.
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
                f"a split training steps with one of {', '.join(OPTIMIZERS)}: leave the optimizer's class out"
            )
        if not self.schedule.settled:
            raise PlanError("a split training keeps its plan from the first step to the last: give a fixed one")
        self.split = split
        self.report: SplitReport | None = None
        _check_plan(self.applied.plan, split)
        self._cut = _cut(self.model, self.applied.anatomy, split)
        self._dealt = deal(len(self.train_dataset or ()), split.clients, self.args.seed)

    def train(self, resume_from_checkpoint: str | bool | None = None, *_: Any, **__: Any) -> TrainOutput:
        """Train in other processes, to the last round. Raises `TrainingError` when one of them fails or dies."""
        if resume_from_checkpoint:
            raise CheckpointError("a split training saves no checkpoints, so there is none to resume from")
        with tempfile.TemporaryDirectory(prefix="frostline-split-") as folder:
            job, client_rows = self._work(Path(folder))
            save_parts(self.model, job.folder)
            with Session(job, client_rows) as session:
                mean_loss, seconds = self._follow(session, job)
            put_tensors(self.model, session.trained, "what was trained", more=False)
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
        """Tell callbacks of every round; the mean loss, and the seconds of all rounds but the first."""
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
        shares = tuple(map(len, self._dealt))
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
            for client, indices in enumerate(self._dealt)
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
    wanted = {
        "gradient_accumulation_steps": 1,
        "activation_checkpointing": False,
        "fp16": False,
        "world_size": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    for name, only in wanted.items():
        if (given := getattr(args, name)) != only:
            raise ConfigError(f"{name}: a split training goes with {only} only (given: {given})")
    if args.optim not in OPTIMIZERS:
        raise ConfigError(f"optim: a split training steps with one of {', '.join(OPTIMIZERS)} (given: {args.optim})")


def _check_plan(plan: Plan, split: Split) -> None:
    if plan.forward != Forward() or plan.embeddings.mode != "frozen":
        raise PlanError("a split training leaves embeddings and the forward pass as they are: take another plan")
    if plan.boundary >= split.cut:
        raise ConfigError(
            f"cut: {split.cut}: nothing trains below block {plan.boundary}, take {plan.boundary + 1} or more"
        )


def _cut(model: Any, anatomy: Anatomy, split: Split) -> Cut:
    blocks = len(anatomy.blocks)
    if not 0 < split.cut < blocks:
        raise ConfigError(f"cut: {split.cut} of {blocks} blocks: both parts need one at least, take 1 to {blocks - 1}")
    try:
        cut = find_cut(model, anatomy, split.cut, weightless=True)
    except CannotCut as error:
        raise UnsupportedModel(f"cut: the model cannot be cut in two parts: {error}") from error
    if len({block.stack for block in anatomy.blocks}) > 1 or cut.running:
        raise UnsupportedModel(
            f"cut: a {anatomy.model_type} model has more than one state to send at a cut: take a decoder or an encoder"
        )
    return cut
