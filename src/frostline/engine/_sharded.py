"""A trainer whose processes share what trains (FSDP2), and the frozen bottom that stays out of it.

The caching pass and all checks before the first step run while each process has the whole model, so they are those of
data parallelism. Then the bottom leaves memory, and the rest is sharded. accelerate gets the sharded model: it would
shard the bottom too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from frostline.checkpoints import save_optimizer, save_scheduler, trained_tensors
from frostline.core.errors import ConfigError
from frostline.engine._changes import ChangingTrainer
from frostline.engine._sharding import (
    asked_sharding,
    check_optimizer,
    check_plan,
    gathered,
    no_effect,
    shard,
    with_values,
    without_values,
)
from frostline.hooks import any_sharded, attribute_set, share_again
from frostline.processes import running
from frostline.surgery import check_plain, renew


class ShardedTrainer(ChangingTrainer):
    """A `transformers.Trainer` that shards what its plan leaves in memory, where FSDP2 is asked for."""

    is_fsdp_enabled: bool
    sharding: FullyShardedDataParallelPlugin | None = None
    """What was asked of FSDP2, if it was."""
    _skeleton: Any = None
    """The model without the values of its parameters, as it was before it was sharded."""

    def create_accelerator_and_postprocess(self) -> None:
        self.sharding = asked_sharding(self.args)
        super().create_accelerator_and_postprocess()
        if self.sharding is None and self.is_fsdp_enabled:
            raise ConfigError("fsdp: accelerate was told to use version 1: use fsdp=True in the training arguments")
        self.is_fsdp_enabled = False  # for what transformers does with it; the model is sharded here instead

    @property
    def notices(self) -> tuple[str, ...]:
        """What runs as it would without frostline and why, one line each."""
        return super().notices if self.sharding is None else (*super().notices, *no_effect(self.args))

    @property
    def _is_sharded(self) -> bool:
        return any_sharded(self.model.parameters())

    def _begin_plan(self) -> None:
        if self.sharding is None:
            super()._begin_plan()
            return
        self.check_sharding()
        super()._begin_plan()
        model = cast(nn.Module, self.model)
        self._skeleton = without_values(model)
        shard(model, self.text_model, self.applied.anatomy, self.session.replaced, self.sharding, bf16=self.args.bf16)
        renew(model)

    def check_sharding(self) -> None:
        """Raise `ConfigError` where FSDP2 is asked for, and this training cannot use it."""
        if self.sharding is None:
            return
        if self._is_sharded:
            raise ConfigError("train: with fsdp a trainer trains once: make a new model and a new trainer")
        if self.optimizer is not None:
            raise ConfigError(
                "optimizers: with fsdp, use optimizer_cls_and_kwargs: an optimizer holds whole parameters"
            )
        if self._as_given and self.args.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end: with fsdp, the best checkpoint of a model without a plan cannot be read into "
                "the shares: use plan=..., or leave it out"
            )
        own = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        check_optimizer(own[0])
        check_plan(self)

    def _prepare_for_training(self, *given: Any) -> Any:
        if self.sharding is None:
            return super()._prepare_for_training(*given)
        accelerator = self.accelerator

        def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
            # accelerate's own `prepare` finds the parameters of the optimizer by their place in memory. Empty parts,
            # which a process has of a small tensor, all have the same.
            prepared = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            return prepared, accelerator.prepare_optimizer(optimizer, device_placement=False)

        with attribute_set(accelerator, "prepare", prepare):
            return super()._prepare_for_training(*given)

    def _positions_refusal(self) -> str | None:
        if self.loss_positions and self.sharding is not None and self.text_model is not self.model:
            return "with fsdp, a model inside another one (PEFT) cannot run by itself to be compared"
        return super()._positions_refusal()

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        # One process counts fewer rows of its last batch, by a second pass: all have to make it.
        own = self._real_rows(inputs) is not None
        ends = self._is_sharded and self.accelerator.gradient_state.end_of_dataloader
        again = ends and running().any(own) and not own
        found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if again:
            super().prediction_step(model, inputs, True, ignore_keys)
        return found

    # Saving: every process gathers, and one writes.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self._is_sharded:
            super()._save(output_dir, state_dict)
            return
        model = cast(nn.Module, self.model)
        share_again(model)
        if self._as_given:
            state_dict = gathered(model.state_dict())
        else:
            self._trained = trained_tensors(model)
        if self.args.should_save:
            super()._save(output_dir, state_dict)
        self._trained = None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        writes = self.args.should_save
        share_again(cast(nn.Module, self.model))  # the optimizer holds the parts
        save_optimizer(self._bare_optimizer(), self._names(), Path(output_dir), writes=writes)
        if writes:
            save_scheduler(self.lr_scheduler, Path(output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False, *, whole: bool = False) -> None:
        if whole and self._is_sharded and not self._as_given:
            check_plain(self.text_model)  # in all processes, before they gather
        super().save_model(output_dir, _internal_call, whole=whole)

    def _copied(self) -> Any:
        if not self._is_sharded:
            return super()._copied()
        return with_values(self._skeleton, self.model, keep=self.args.should_save, device=torch.device("cpu"))

    def whole_model(self) -> Any:
        """The model with all of its weights in this process: itself, or a copy of it where processes share it.

        It is for use, not to go on training. All processes have to call this.
        """
        return with_values(self._skeleton, self.model) if self._is_sharded else self.model
