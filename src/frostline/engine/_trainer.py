"""`transformers.Trainer` under a plan: what it adds is the schedule, the delta and exact resume."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from frostline.bottom import Load, Streaming
from frostline.checkpoints import _state, load_delta, save_delta
from frostline.core.errors import TrainingError, UserError
from frostline.core.files import atomic_folder, disk_errors, read_json, write_json
from frostline.engine._cache import CachedBottom, Mode
from frostline.engine._cache_work import Replaceable
from frostline.engine._flora import Flora, check_flora
from frostline.engine._in_backward import check_in_backward, step_in_backward
from frostline.engine._observe import Observer
from frostline.engine._optimizer import regroup
from frostline.engine._ranks import ShareRanks, load_ranks, save_ranks
from frostline.engine._sampler import GroupedByLength
from frostline.loss_positions import Reads, compute_at_loss_positions
from frostline.plan import FixedSchedule, Plan, Schedule, document
from frostline.surgery import Applied, applied_to, apply, change, check_loss_is_the_models

SCHEDULE_FILE = "schedule.json"
STAGING = ".saving-"


class Trainer(transformers.Trainer):
    """A `transformers.Trainer` that trains what a plan (or a schedule of plans) says.

    Everything that `transformers.Trainer` takes works: callbacks, logging, mixed precision, accelerate. A
    checkpoint holds the delta, the optimizer's state by parameter name and the generators' states, all
    without pickle, and is whole or absent; training resumed from it ends with the same weights as if it had
    never stopped.

    With `optimizer_in_backward` each parameter is stepped as soon as the backward pass has its gradient, which
    is then freed; it gives the same weights, and goes without clipping, accumulation and other processes.

    `optimizer_cls_and_kwargs=(Flora, {...})` trains by FLORA; what it accumulates is compressed in the backward pass.

    `activation_cache` says whether rows pass the frozen bottom once and train from their stored states: `auto` where
    it is right and pays, `on`, `off`; `activation_cache_limit` is what all stores together may take, in bytes.
    `load_bottom` reads the bottom block by block (`load_above`). `loss_positions` runs head and last block only where
    the loss reads. What came of them: `cached.report`, `reads.notices`.

    Under a schedule the plan may change between steps: `changes` tells which came when, `seconds_until_settled` how
    long after the first step the last one came.

    `plan` or `schedule` may be left out when `frostline.apply` was called on the model before. `last_loss` is
    the loss of the last optimizer step, over all the batches that it accumulated. Raises `UserError` when the
    plan does not fit, and `TrainingError` when the loss is not a number.
    """

    optimizer: Any
    data_collator: Any

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        plan: Plan | None = None,
        schedule: Schedule | None = None,
        optimizer_in_backward: bool = False,
        activation_cache: Mode = "auto",
        activation_cache_limit: int | None = None,
        load_bottom: Load | None = None,
        loss_positions: bool = True,
        **options: Any,
    ) -> None:
        if optimizer_in_backward and args is not None:
            check_in_backward(args)
        if args is not None and (options.get("optimizer_cls_and_kwargs") or (None,))[0] is Flora:
            check_flora(args)
        self.optimizer_in_backward = optimizer_in_backward
        self._gradient_norms: list[torch.Tensor] = []
        self.schedule = _settle(model, plan, schedule, args)
        self.changes: list[PlanChange] = []
        self.seconds_until_settled = 0.0
        self._first_step = math.nan
        if args is not None and args.activation_checkpointing:
            args.activation_checkpointing_kwargs = _non_reentrant(args.activation_checkpointing_kwargs)
        self.loss_positions = loss_positions
        self.reads: Reads | None = None
        self.last_loss = math.nan
        self._step = -1
        self._staging: str | None = None
        self._loaded = ""
        self._made_optimizer = False
        super().__init__(model, args, *positional, **options)
        self.add_callback(ShareRanks())
        self.observer = Observer(model, self.schedule.observes)
        check_loss_is_the_models(self.applied.plan, self._loss_is_custom())
        if not self.schedule.settled:
            self.data_collator = Replaceable(self.data_collator)
        self.cache = CachedBottom(
            self, activation_cache, activation_cache_limit, _streaming(model, self.applied, load_bottom)
        )

    @property
    def applied(self) -> Applied:
        """What the current plan does to the model."""
        return cast(Applied, applied_to(cast(nn.Module, self.model)))

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **options: Any) -> Any:
        """As `transformers.Trainer.train`; the activation cache is used where it is right and pays
        (`cached.report`)."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir))
        try:
            if resume_from_checkpoint:  # now, since the bottom that leaves memory may have trained before
                begun_with = self.applied.plan
                self._load_from_checkpoint(str(resume_from_checkpoint))
                if self.applied.plan != begun_with:
                    self.cache.end()  # what was decided was for that plan
                self._loaded = str(resume_from_checkpoint)
                if self._made_optimizer:  # over what another plan may have trained
                    self.optimizer = None
            self._begin_plan()
            return super().train(resume_from_checkpoint, *positional, **options)
        finally:
            self._loaded = ""
            self._end_plan()

    def _begin_plan(self) -> None:
        self.cache.begin()
        self.reads = self._read_less()

    def _end_plan(self) -> None:
        if self.reads is not None:
            self.reads.remove()
        self.cache.end()

    def whole_model(self) -> AbstractContextManager[None]:
        """Inside, the model runs on any input also while it trains from the activation cache."""
        return self.cache.whole_model()

    def _read_less(self) -> Reads | None:
        rows: Any = self.train_dataset
        whole = self._loss_is_custom() or self.applied.plan.forward.layered
        if not self.loss_positions or whole or not hasattr(rows, "__len__") or self.is_fsdp_enabled:
            return None
        collate = self._get_collator_with_removed_columns(self.data_collator)
        batch = dict(collate([rows[index] for index in range(min(3, len(rows)))]))
        with self.cache.feeding(batch), self.accelerator.autocast():
            return compute_at_loss_positions(self.model, self.applied.anatomy, self._prepare_inputs(batch), exact=False)

    def _loss_is_custom(self) -> bool:
        return self.label_smoother is not None or self.compute_loss_func is not None

    def evaluate(self, eval_dataset: Any = None, *positional: Any, **options: Any) -> dict[str, float]:
        with nullcontext() if self.cache.holds(eval_dataset) else self.whole_model():
            return cast(dict[str, float], super().evaluate(eval_dataset, *positional, **options))

    def predict(self, test_dataset: Any, *positional: Any, **options: Any) -> Any:
        with nullcontext() if self.cache.holds(test_dataset) else self.whole_model():
            return super().predict(test_dataset, *positional, **options)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_meta:  # a bottom that is read block by block comes later, to where the rest is
                tensor.data = tensor.data.to(device)

    # Optimizer: one group for each pair of weight decay and learning-rate scale.

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `args`, over the trained parameters alone, at each one's learning-rate scale."""
        if self.optimizer is None:
            trained = cast(nn.Module, self.model if model is None else model)
            chosen, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = chosen(self._parameter_groups(trained), **options)
            self._made_optimizer = True
        return cast(torch.optim.Optimizer, self.optimizer)

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = self.applied.lr_scales.get(name, 1.0)
                groups.setdefault((name in decayed, scale), []).append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": self.args.weight_decay if decays else 0.0,
                "lr": self.args.learning_rate * scale,
            }
            for (decays, scale), parameters in groups.items()
        ]

    # Batches.

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupedByLength(sampler.batch_size, sampler.lengths, seed)
        return sampler

    # One step.

    def training_step(self, model: nn.Module, *inputs: Any, **options: Any) -> torch.Tensor:
        if self.state.global_step != self._step:
            self._begin_step(self.state.global_step)
        with self._stepping() as self._gradient_norms, self._accumulating():
            loss: torch.Tensor = super().training_step(model, *inputs, **options)
        self.last_loss += loss.item()
        self._check_loss(self.last_loss)
        return loss

    def _stepping(self) -> AbstractContextManager[list[torch.Tensor]]:
        return step_in_backward(self._bare_optimizer()) if self.optimizer_in_backward else nullcontext([])

    def _accumulating(self) -> AbstractContextManager[None]:
        summing = self._summing_optimizer()
        return nullcontext() if summing is None else summing.accumulating()

    def _summing_optimizer(self) -> Flora | None:
        """The optimizer, if it adds up what batches give in its own way."""
        optimizer = self._bare_optimizer()
        return optimizer if isinstance(optimizer, Flora) and self.args.gradient_accumulation_steps > 1 else None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *positional: Any, **options: Any) -> Any:
        with self.cache.feeding(inputs):
            loss = super().compute_loss(model, inputs, *positional, **options)
        if self.optimizer_in_backward and model.training:  # no later check comes before a step
            self._check_loss(loss.item())
        return loss

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.state.global_step + 1}: lower the learning rate or look "
                f"at the data{self._last_checkpoint_hint()}"
            )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        summing = self._summing_optimizer()
        return super()._clip_grad_norm(model) if summing is None else summing.clip_norm(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self._gradient_norms:
            grad_norm = torch.linalg.vector_norm(torch.stack(self._gradient_norms))
        if grad_norm is None and (summing := self._summing_optimizer()) is not None:
            grad_norm = summing.clip_norm(math.inf)
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _begin_step(self, step: int) -> None:
        """Before the first batch of an optimizer step; each batch gives its share of the step's loss."""
        begun = time.perf_counter()
        if self._step < 0:
            self._first_step = begun
        self._step, self.last_loss = step, 0.0
        if step == 0 or self._settled():
            return
        plan = self.schedule.next(step, self.observer)
        if plan is not None:
            self._end_plan()
            self._change_plan(plan)
            now = time.perf_counter()
            self.changes.append(PlanChange(step, plan, now - begun))
            if self._settled():
                self.seconds_until_settled = now - self._first_step
            self._begin_plan()

    def _settled(self) -> bool:
        return self.schedule.settled

    def _change_plan(self, plan: Plan) -> None:
        """Train under another plan from here on: what it freezes leaves the optimizer with its state, the others keep
        theirs."""
        change(plan, self.model, keep_originals=self.args.load_best_model_at_end)
        regroup(self._bare_optimizer(), self.lr_scheduler, self._parameter_groups(self.model))
        self.observer = Observer(self.model, self.schedule.observes)

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, epochs: int, *rest: Any) -> tuple[int, int]:
        self._step = -1
        trained: tuple[int, int] = super()._init_training_state(max_steps, steps_per_epoch, epochs, *rest)
        # transformers would take one step more when the checkpoint is the last and in the middle of an epoch.
        return (epochs, 0) if self.state.global_step >= max_steps else trained

    # Checkpoints: written beside their place, then moved into it.

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or cast(str, super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        run_folder.mkdir(parents=True, exist_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=run_folder) as staging:
            try:
                self._staging = staging
                with disk_errors(run_folder / name):
                    super()._save_checkpoint(model, trial)
                    self._point_best_checkpoint_to(run_folder, Path(staging) / name)
                    if self.args.should_save:
                        with atomic_folder(run_folder / name) as place:
                            (Path(staging) / name).replace(place)
            finally:
                self._staging = None
                self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )

    def _point_best_checkpoint_to(self, run_folder: Path, staged: Path) -> None:
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run_folder / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_delta(self.model, folder)
        changes = [change.document() for change in self.changes]
        write_json(folder / SCHEDULE_FILE, {"state": self.schedule.state_dict(), "changes": changes})
        self.observer.save(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        _state.save_optimizer(self._bare_optimizer(), self._names(), Path(output_dir))
        _state.save_scheduler(self.lr_scheduler, Path(output_dir))
        save_ranks(self.applied.peft_models, Path(output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        write_json(Path(output_dir) / self._rng_file(), _state.random_state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if resume_from_checkpoint == self._loaded:
            return
        folder = Path(resume_from_checkpoint)
        for left in folder.parent.glob(f"{STAGING}*"):  # by a process that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        load_delta(self.model if model is None else model, folder)
        saved = read_json(folder / SCHEDULE_FILE, "schedule state")
        self.schedule.load_state_dict(saved["state"])
        self.changes = [PlanChange.read(entry) for entry in saved["changes"]]
        self.observer = Observer(self.model, self.schedule.observes)
        self.observer.load(folder)

    def _load_best_model(self) -> None:
        self._end_plan()  # its plan may be another
        load_delta(self.model, Path(cast(str, self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / _state.OPTIMIZER_FILE).is_file():
            _state.load_optimizer(self._bare_optimizer(), self._names(), Path(checkpoint))
            _state.load_scheduler(self.lr_scheduler, Path(checkpoint))
            load_ranks(self.applied.peft_models, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / self._rng_file()).is_file():
            _state.set_random_state(read_json(Path(checkpoint) / self._rng_file(), "generator state"))

    def _rng_file(self) -> str:
        return "rng.json" if self.args.world_size <= 1 else f"rng_{self.args.process_index}.json"

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    def _last_checkpoint_hint(self) -> str:
        last = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
        return f"; the last checkpoint is {last}" if last else ""


@dataclass(frozen=True)
class PlanChange:
    """A plan that took over in training: before which optimizer step, and in how many seconds."""

    step: int
    plan: Plan
    seconds: float

    def document(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"step": self.step, "plan": document(self.plan), "seconds": self.seconds}

    @classmethod
    def read(cls, entry: dict[str, Any]) -> PlanChange:
        """The inverse of `document`."""
        return cls(entry["step"], Plan.read(entry["plan"]), entry["seconds"])


def _settle(model: Any, plan: Plan | None, schedule: Schedule | None, args: TrainingArguments | None) -> Schedule:
    """Apply the plan that training starts with, and give the schedule that goes on from it."""
    if not isinstance(model, nn.Module):
        raise UserError("frostline.Trainer wants the model itself (model=...), so that it can apply the plan")
    already = applied_to(model)
    if plan is not None and schedule is not None:
        raise UserError("give plan or schedule, not both: a plan is the schedule that never changes")
    if plan is None and schedule is None:
        if already is None:
            raise UserError("give plan=... or schedule=...: frostline.make_plan(model, 'bot50') makes a plan")
        return FixedSchedule(already.plan)
    chosen = schedule or FixedSchedule(cast(Plan, plan))
    if not chosen.settled and args is not None and args.world_size > 1:
        raise UserError("a schedule that changes its plan while training runs in one process: take a fixed plan")
    if already is None or already.plan != chosen.first:
        apply(chosen.first, model, seed=args.seed if args else 0)
    return chosen


def _streaming(model: Any, applied: Applied, load: Load | None) -> Streaming | None:
    if load is None:
        return None
    streaming = Streaming(model, applied.anatomy, load)
    streaming.read_hashes(applied.plan.boundary)
    # What was in memory is known as it was loaded; the final norm may since have been widened to train.
    base = cast(dict[str, str], applied.base)
    base.update({name: value for name, value in streaming.hashes.items() if name not in base})
    return streaming


def _non_reentrant(options: dict[str, Any] | None) -> dict[str, Any]:
    options = dict(options or {})
    if options.setdefault("use_reentrant", False):
        raise UserError(
            "use_reentrant: true would train nothing above a frozen bottom: leave it out (non-reentrant "
            "checkpointing is used)"
        )
    return options
