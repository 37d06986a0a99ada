"""`transformers.Trainer` under a plan. It adds the schedule, the savings of a frozen bottom, and exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from frostline.bottom import Amount, CacheMode, CacheSession, Load, Training
from frostline.checkpoints import load_delta
from frostline.core.errors import CheckpointError, ConfigError, TrainingError
from frostline.cost import Estimate, Workload, cache_estimate
from frostline.engine._collator import AnnouncingCollator
from frostline.engine._flora import Flora, check_flora
from frostline.engine._in_backward import check_in_backward, step_in_backward
from frostline.engine._left import LeftState
from frostline.engine._live import report_live
from frostline.engine._plan_change import PlanChange
from frostline.engine._ranks import ShareRanks
from frostline.engine._sampler import GroupedByLength
from frostline.engine._sharded import ShardedTrainer
from frostline.engine._sharding import asked_sharding, fill_from_first
from frostline.engine._shortcuts import COMPILED
from frostline.engine._start import (
    CountSteps,
    PlanFor,
    ScheduleFor,
    check_same,
    check_settings,
    non_reentrant,
    start_schedule,
    streaming,
)
from frostline.hooks import own_part
from frostline.plan import Schedule, lowest_boundary
from frostline.processes import running, watching
from frostline.surgery import check_loss_is_the_models


class Trainer(ShardedTrainer):
    """A `transformers.Trainer` that trains what a plan (or a schedule of plans) says.

    Callbacks, logging, mixed precision and accelerate work as in `transformers.Trainer`. A checkpoint holds the delta,
    the optimizer's state by parameter name and the states of the random generators, all without pickle. It is complete
    or absent. Training that is resumed from it ends with the same weights as if it had never stopped.

    Attributes:
        cache_report: what the activation cache did.
        notices: what runs as it would without frostline and why, one line each.
        changes: the changes of the plan so far, under a schedule.
        seconds_until_settled: time from the first step to the last change of the plan.
        last_loss: the loss of the last optimizer step, over all its batches.

    Args:
        model: the model itself; None with `model_init`.
        args: as for `transformers.Trainer`.
        plan: which blocks train, or a function that makes a plan for a model. Without plan and schedule the model
            trains as it is: as `frostline.apply` or PEFT's `get_peft_model` left it, or by `requires_grad`. Then
            its checkpoints are those of transformers and PEFT.
        schedule: instead of a plan; it may change the plan during training.
        optimizer_in_backward: step each parameter as soon as the backward pass has its gradient, and free the gradient.
            The weights are the same. Gradient clipping, accumulation and several processes are not possible with it.
        activation_cache: whether each row goes through the frozen bottom once, and training reads its stored states:
            `auto` (where training stays the same and time is saved), `on` or `off`.
        activation_cache_limit: bytes that all caches together may use on disk, or a size such as `20GB`.
        load_bottom: reads the bottom block by block (see `load_above`).
        loss_positions: whether head and last block run only at the loss positions.
        keep_left_state: keep the optimizer's state of what stops training, in the host's memory, until it trains again.
            Without it such state is freed, and begins anew.
        options: as for `transformers.Trainer`. `optimizer_cls_and_kwargs=(Flora, {...})` trains with FLORA, which
            compresses accumulated gradients during the backward pass.

    Raises `ConfigError` or `PlanError` when settings or plan do not fit, and `TrainingError` when the loss is not a
    number.
    """

    data_collator: Any

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        plan: PlanFor | None = None,
        schedule: ScheduleFor | None = None,
        optimizer_in_backward: bool = False,
        activation_cache: CacheMode = "auto",
        activation_cache_limit: int | str | None = None,
        load_bottom: Load | None = None,
        loss_positions: bool = True,
        keep_left_state: bool = False,
        **options: Any,
    ) -> None:
        if optimizer_in_backward and args is not None:
            check_in_backward(args)
        if args is not None and (options.get("optimizer_cls_and_kwargs") or (None,))[0] is Flora:
            check_flora(args)
        if args is not None and load_bottom is None and asked_sharding(args) is not None and model is not None:
            fill_from_first(model, args.device)
        limit = check_settings(activation_cache, activation_cache_limit, loss_positions)
        self.optimizer_in_backward = optimizer_in_backward
        self._gradient_norms: list[torch.Tensor] = []
        self._start: Callable[[Any], Schedule] = partial(start_schedule, plan=plan, schedule=schedule, args=args)
        if options.get("model_init") is None:
            self.schedule = self._start(model)
        elif load_bottom is not None:
            raise ConfigError(
                "load_bottom and model_init are both given: use model=... where it is read block by block"
            )
        self.changes: list[PlanChange] = []
        self.seconds_until_settled = 0.0
        self._first_step = math.nan
        if args is not None and args.activation_checkpointing:
            args.activation_checkpointing_kwargs = non_reentrant(args.activation_checkpointing_kwargs)
        self.loss_positions = loss_positions
        self._loss: torch.Tensor | float = math.nan
        self._step = -1
        self._made_optimizer = False
        super().__init__(model, args, *positional, **options)
        if self.applied.peft_models or self.model_init is not None or not self.schedule.settled:
            self.add_callback(ShareRanks())  # a later plan may have ranks too
        if keep_left_state and self.schedule.settled:
            raise ConfigError(
                f"keep_left_state: nothing stops training under '{self.schedule.first.strategy}': leave it out"
            )
        self.left = LeftState(self._names) if keep_left_state else None
        self.observer = self._observe()
        if self.applied.plan.forward.drops or self.model_init is not None:
            self.add_callback(CountSteps())
        check_loss_is_the_models(self.applied.plan, self._loss_is_custom())
        self._streaming = streaming(self.model, self.applied, load_bottom)
        self.session = CacheSession(
            self._training,
            activation_cache,
            limit=limit,
            streaming=self._streaming,
            processes=running(),
        )

    @property
    def last_loss(self) -> float:
        """The loss of the last optimizer step, over all its batches."""
        return float(self._loss)

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **options: Any) -> Any:
        """Train as `transformers.Trainer.train` does, with the activation cache where `activation_cache` says so.

        Args:
            resume_from_checkpoint: the folder of a checkpoint; True: the last one in the output folder.
            positional: as for `transformers.Trainer.train`.
            options: the same, by name.

        Raises `CheckpointError` when there is no checkpoint to resume from, or it is not complete.
        """
        check_same(self.train_dataset, self.applied.plan, self.schedule)
        report_live(self, lambda: self.applied)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
            if resume_from_checkpoint is None:
                raise CheckpointError(
                    f"No valid checkpoint found in output directory ({self.args.output_dir}): use the folder of the "
                    "training to resume, or train() for a new one"
                )
        try:
            with watching():
                trained = super().train(resume_from_checkpoint, *positional, **options)
                self._check_last()
            return trained
        finally:
            self._end_plan()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model from `model_init`, under the plan that training starts with."""
        model: nn.Module = super().call_model_init(trial)
        if self.sharding is not None:
            fill_from_first(model, self.args.device)
        self.schedule = self._start(model)
        if hasattr(self, "session"):
            self._end_plan()
            self.changes, self.observer = [], self._observe(model)
        return model

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The bottom has to be in memory: it may have trained under an earlier plan.
        begun_with = self.applied.plan
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.applied.plan != begun_with:
            self.session.end()  # its decision was for that plan
        if self._made_optimizer:  # for parameters that another plan may have trained
            self.optimizer = None

    def _loss_is_custom(self) -> bool:
        return self.label_smoother is not None or self.compute_loss_func is not None

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_meta:  # a bottom that is read block by block gets its device when it is read
                tensor.data = tensor.data.to(device)

    # What the activation cache needs to know.

    def _training(self) -> Training:
        args, applied = self.args, self.applied
        refusal = None
        if self.args.neftune_noise_alpha is not None:
            refusal = "NEFTune adds noise to the embeddings in every pass"
        elif self.args.torch_compile:
            refusal = COMPILED
        evaluates = args.eval_strategy != "no" or self._streaming is not None
        given = self.eval_dataset if evaluates else None
        others = list(given.values()) if isinstance(given, Mapping) else [] if given is None else [given]
        return Training(
            model=self.text_model,
            plan=applied.plan,
            anatomy=applied.anatomy,
            datasets=[self.train_dataset, *others],
            collate=self._collate(),
            device=args.device,
            batch_size=args.train_batch_size,
            autocast=self._autocast_dtype,
            trained=applied.lr_scales,
            loss=lambda _, batch: self.compute_loss(self.model, batch),
            estimate=self._estimate,
            refusal=refusal,
            label_names=self.label_names,
            lowest=None if self.schedule.settled else lowest_boundary(self.schedule, applied.plan),
        )

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None

    def _estimate(self, amount: Amount) -> Estimate:
        """What a cache would save in the rest of this training, when some of the rows are not in it yet."""
        args, rows = self.args, len(cast(Any, self.train_dataset))
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        passes = args.max_steps * per_step / rows if args.max_steps > 0 else args.num_train_epochs
        began = self.changes[-1].step if self.changes else 0
        workload = Workload(
            rows=amount.rows,
            length=max(1, round(amount.mean_length)),
            per_device_train_batch_size=args.train_batch_size,
            processes=args.world_size,
            num_train_epochs=float(max(passes - began * per_step / rows, per_step / rows)),
            bf16=self._autocast_dtype is not None,
            stored_share=1 - amount.missing / amount.rows,
        )
        return cache_estimate(
            self.applied.plan,
            self.applied.anatomy,
            workload,
            amount.bytes,
            boundary=amount.boundary,
            above=amount.above,
            midway=began > 0,
        )

    # Optimizer: one group for each pair of weight decay and learning-rate scale.

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `args` for the trained parameters, each with its learning-rate scale."""
        if self.optimizer is None:
            trained = cast(nn.Module, self.model if model is None else model)
            chosen, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = chosen(self._parameter_groups(trained), **options)
            self._made_optimizer = True
        return cast(torch.optim.Optimizer, self.optimizer)

    # Batches.

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupedByLength(sampler.batch_size, sampler.lengths, seed)
        return sampler

    def _get_dataloader(self, *given: Any, **options: Any) -> Any:
        own, self.data_collator = self.data_collator, AnnouncingCollator(self.data_collator, self.session)
        try:
            return super()._get_dataloader(*given, **options)
        finally:
            self.data_collator = own

    # One step.

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.state.global_step != self._step:
            self._begin_step(self.state.global_step, inputs)
        with self._stepping() as self._gradient_norms, self._accumulating():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss = self._loss + loss.detach()  # stays on the device: it is read once a step
        return loss

    def _stepping(self) -> AbstractContextManager[list[torch.Tensor]]:
        return step_in_backward(self._bare_optimizer()) if self.optimizer_in_backward else nullcontext([])

    def _accumulating(self) -> AbstractContextManager[None]:
        summing = self._summing_optimizer()
        return nullcontext() if summing is None else summing.accumulating()

    def _summing_optimizer(self) -> Flora | None:
        """The optimizer, if it accumulates gradients in its own way (FLORA)."""
        optimizer = self._bare_optimizer()
        return optimizer if isinstance(optimizer, Flora) and self.args.gradient_accumulation_steps > 1 else None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *positional: Any, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, *positional, **options)
        if self.optimizer_in_backward and model.training:  # the other check would come after the step
            self.check_loss(loss.item())
        return loss

    def _loss_is_overridden(self) -> bool:
        return "compute_loss" in vars(self) or type(self).compute_loss is not Trainer.compute_loss

    def check_loss(self, loss: float) -> None:
        """Raises `TrainingError` when the loss is not a finite number."""
        if not math.isfinite(loss):
            first = self.state.global_step == 0  # no step has changed the weights yet
            if first and (broken := _not_finite(self.model)) is not None:
                raise TrainingError(
                    f"the loss is {loss} at step 1: tensor {broken} of the model has values that are not finite "
                    "numbers: use an undamaged copy of its weights"
                )
            raise TrainingError(
                f"the loss is {loss} at step {self.state.global_step + 1}: use a lower learning_rate or check "
                f"the data{self._last_checkpoint_hint()}"
            )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        summing = self._summing_optimizer()
        return super()._clip_grad_norm(model) if summing is None else summing.clip_norm(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.args.world_size > 1:
            self._loss = self.accelerator.reduce(self._loss, "mean")
        self.check_loss(self.last_loss)  # here, because it runs once a step, just before the optimizer
        if self._gradient_norms:
            grad_norm = torch.linalg.vector_norm(torch.stack(self._gradient_norms))
        if grad_norm is None and (summing := self._summing_optimizer()) is not None:
            grad_norm = summing.clip_norm(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, epochs: int, *rest: Any) -> tuple[int, int]:
        self._step = -1
        trained: tuple[int, int] = super()._init_training_state(max_steps, steps_per_epoch, epochs, *rest)
        if self._begun:  # a first try with a larger batch failed
            self._end_plan()
        with running().together():
            self._begin_plan()
        # transformers would make one step more when the last checkpoint lies in the middle of an epoch.
        return (epochs, 0) if self.state.global_step >= max_steps else trained

    def _load_best_model(self) -> None:
        self._check_last()
        self._end_plan()  # the best model may have another plan
        if self._as_given:
            super()._load_best_model()
        else:
            load_delta(self.model, Path(cast(str, self.state.best_model_checkpoint)))


def _not_finite(model: nn.Module) -> str | None:
    """The first tensor in memory with a value that is no finite number."""
    tensors = ((name, tensor) for name, tensor in model.named_parameters() if tensor.is_floating_point())
    return next(
        (name for name, tensor in tensors if not tensor.is_meta and not own_part(tensor).isfinite().all()), None
    )
