"""A trainer whose plan changes: what stops training leaves the optimizer, and what trains again comes back."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from frostline.core.errors import ConfigError
from frostline.engine._observe import OF_THE_STEP, Step
from frostline.engine._optimizer import factors, parameter_groups, regroup
from frostline.engine._plan_change import PlanChange
from frostline.engine._shortcuts import ShortcutsTrainer
from frostline.plan import Plan, Schedule, rate_of
from frostline.surgery import change


class ChangingTrainer(ShortcutsTrainer):
    """A `transformers.Trainer` that changes its plan when the schedule says so."""

    seconds_until_settled: float
    model_wrapped: Any
    lr_scheduler: Any
    _loss: torch.Tensor | float
    _step: int

    @property
    def notices(self) -> tuple[str, ...]:
        """What runs as it would without frostline and why, one line each."""
        if rate_of(self.schedule) is None:
            return super().notices
        kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        name = self.applied.plan.strategy
        return (*super().notices, f"'{name}' sets the learning rates itself, in place of lr_scheduler_type={kind}")

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule of `args`, or that of a schedule that sets the rates itself."""
        rate = rate_of(self.schedule)
        if rate is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        own = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = LambdaLR(own, factors(rate, own.param_groups))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        blocks = None
        if rate_of(self.schedule) is not None:
            blocks = {f"{block.name}.": block.index for block in self.applied.anatomy.blocks}
        return parameter_groups(self, model, self.applied.lr_scales, blocks)

    def _begin_step(self, step: int, inputs: Any) -> None:
        """Before the first batch of an optimizer step: reset the loss, and change the plan if the schedule says so."""
        begun = time.perf_counter()
        if self._step < 0:
            self._first_step = begun
        self._step, self._loss = step, 0.0
        self._check_again(step)
        if step == 0 or self._settled():
            return
        self.observer.step = Step(partial(self._pass, inputs), partial(self._mask, inputs), self._rates)
        plan = self.schedule.next(step, self.observer)
        self.observer.step = None
        if plan is not None:
            before = self.applied.plan
            self._change_plan(plan)
            now = time.perf_counter()
            self.changes.append(PlanChange.between(before, plan, step, now - begun))
            if self._settled():
                self.seconds_until_settled = now - self._first_step
            self._follow_plan()

    def _pass(self, inputs: Any) -> Any:
        """A forward pass of a batch as training makes it, with the last block at all positions."""
        whole = nullcontext() if self.positions is None else self.positions.suspended()
        with whole, self.compute_loss_context_manager():
            return self.compute_loss(self.model, dict(self._prepare_inputs(inputs)))

    def _mask(self, inputs: Any) -> Any:
        anatomy = self.applied.anatomy
        block = anatomy.blocks[self.applied.plan.boundary]
        decodes = block.stack != anatomy.blocks[0].stack
        mask = inputs.get("decoder_attention_mask" if decodes else "attention_mask")
        return mask.to(self.args.device) if isinstance(mask, torch.Tensor) else None

    def _rates(self) -> tuple[float, float]:
        """The learning rate of now and the lowest to come, as shares; 0 where that is not known."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if not isinstance(scheduler, LambdaLR):
            return 1.0, 0.0
        share, now = scheduler.lr_lambdas[0], scheduler.last_epoch
        return share(now), min(share(step) for step in range(now, max(now + 1, self.state.max_steps)))

    def _settled(self) -> bool:
        return self.schedule.settled

    def _change_plan(self, plan: Plan) -> None:
        """Train under another plan from now on. What it freezes leaves the optimizer; all others keep their state."""
        change(plan, self.model, keep_originals=self.args.load_best_model_at_end)
        groups = self._parameter_groups(self.model)
        regroup(self._bare_optimizer(), self.lr_scheduler, groups, rate=rate_of(self.schedule), left=self.left)
        self.observer = self._observe()
        synchronize_what_trains(self)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if not self._settled():
            self.observer.collect()  # here, because it runs once a step, just before the optimizer
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _states_at(self) -> int:
        return self.session.boundary

    def _resume_states(self, boundary: int) -> None:
        if self.changes:
            self.session.resume(boundary)


def synchronize_what_trains(trainer: Any) -> None:
    """Begin the wrapper of several processes anew: it never averages gradients of what was frozen when it was made."""
    wrapped = trainer.model_wrapped
    if isinstance(wrapped, DistributedDataParallel):
        handler = trainer.accelerator.ddp_handler
        places = {"device_ids": wrapped.device_ids, "output_device": wrapped.output_device}
        # In place: the training loop holds it.
        wrapped.__init__(wrapped.module, **places, **({} if handler is None else handler.to_kwargs()))  # type: ignore[misc]


def check_own_trainer(schedule: Schedule) -> None:
    """Raise `ConfigError` for a schedule that needs more of its trainer than one that is not our own gives."""
    name = schedule.first.strategy
    if rate_of(schedule) is not None:
        raise ConfigError(
            f"attach: '{name}' sets the learning rates itself: use frostline.Trainer, or another strategy"
        )
    if any(signal.startswith(OF_THE_STEP) for signal in schedule.observes):
        raise ConfigError(
            f"attach: '{name}' measures the batches of training: use frostline.Trainer, or another strategy"
        )
