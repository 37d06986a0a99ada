"""A plan and the savings of its frozen bottom in a trainer that is not frostline's (TRL's, for example)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from frostline.anatomy import find_anatomy, text_model
from frostline.bottom import CacheMode, CacheReport, FillingCache, LoopSession, Training, not_possible
from frostline.core.errors import CheckpointError, ConfigError
from frostline.core.files import read_json, reading, write_json
from frostline.engine._attach_saving import save_trained
from frostline.engine._changes import check_own_trainer, synchronize_what_trains
from frostline.engine._known_rows import fill_with_known_rows, passes_over_rows
from frostline.engine._live import report_live
from frostline.engine._observe import Observer
from frostline.engine._optimizer import parameter_groups, regroup, scale_groups
from frostline.engine._saving import SavingTrainer
from frostline.engine._sharding import check_unsharded
from frostline.engine._shortcuts import COMPILED, few_rows, plan_settings, positions_refusal, slow_dtype
from frostline.engine._start import PlanFor, ScheduleFor, check_same, check_settings, start_schedule
from frostline.hooks import Rechecks, begin_step
from frostline.loss_positions import LossPositions, hook_above, use_loss_positions
from frostline.plan import Plan, Schedule, document, lowest_boundary
from frostline.processes import running
from frostline.surgery import Applied, applied_to, change

STATE_FILE = "frostline.json"
"""What a checkpoint of the trainer gets beside its own files under a schedule that may still change the plan."""
_ATTRIBUTE = "_frostline_attachment"

AnyTrainer = TypeVar("AnyTrainer", bound=transformers.Trainer)


def attach(
    trainer: AnyTrainer,
    plan: PlanFor | None = None,
    schedule: ScheduleFor | None = None,
    *,
    activation_cache: CacheMode = "auto",
    activation_cache_limit: int | str | None = None,
    loss_positions: bool = True,
) -> AnyTrainer:
    """Let a `transformers.Trainer` of any class train what a plan says, and save what the frozen bottom costs.

    The trainer keeps its class, arguments, loss, accumulation, callbacks and checkpoints. Rows are recognized by what
    the model is called with: the first time, their boundary states are stored; later they are read, and the frozen
    bottom does not run. A reference model with the same bottom (DPO) reads the same states. Call it before `train()`.

        trainer = fl.attach(SFTTrainer(model=model, args=args, train_dataset=rows), plan="bot50")

    Afterwards `trainer.cache_report` and `trainer.notices` say what the cache did, and what runs plainly and why.

    Args:
        trainer: any `transformers.Trainer`, but `frostline.Trainer`, which has all of this.
        plan: which blocks train. Without plan and schedule the model trains as it is: as `frostline.apply` or PEFT left
            it, or by `requires_grad`.
        schedule: instead of a plan; it may change the plan during training.
        activation_cache: `auto` (where rows are seen more than once), `on` or `off`.
        activation_cache_limit: bytes that all caches together may use on disk, or a size such as `20GB`.
        loss_positions: whether head and last block run only at the loss positions, where the loss is the model's own
            and the trainer uses it as `transformers.Trainer` does.

    Returns the trainer. Raises `ConfigError` or `PlanError` when trainer, settings and plan do not fit.
    """
    if isinstance(trainer, SavingTrainer):
        raise ConfigError("attach: frostline.Trainer has the plan and the savings itself: use it without attach")
    if not isinstance(trainer, transformers.Trainer):
        raise ConfigError(
            f"attach: {type(trainer).__name__} is not a transformers.Trainer: use frostline.apply(plan, model) and "
            "frostline.activation_cache(model) in a loop of your own"
        )
    if hasattr(trainer, _ATTRIBUTE):
        raise ConfigError("attach: it was called on this trainer before: call it once, before train()")
    check_unsharded(trainer.args)
    limit = check_settings(activation_cache, activation_cache_limit, loss_positions)
    _Attachment(trainer, plan, schedule, activation_cache, limit, loss_positions)
    return trainer


class _Attachment(TrainerCallback):
    """What `attach` adds to a trainer: the plan, the sessions, and what happens between steps."""

    def __init__(
        self,
        trainer: Any,
        plan: PlanFor | None,
        schedule: ScheduleFor | None,
        mode: CacheMode,
        limit: int | None,
        loss_positions: bool,
    ) -> None:
        self._trainer, self._mode, self._limit, self._asked_positions = trainer, mode, limit, loss_positions
        self._start: Callable[[Any], Schedule] = functools.partial(
            start_schedule, plan=plan, schedule=schedule, args=trainer.args
        )
        self._schedule = self._begin_model(trainer.model)
        self._report = CacheReport()
        self._sessions: list[LoopSession] = []
        self._positions: LossPositions | None = None
        self._positions_notices: tuple[str, ...] = ()
        self._caches: dict[Path, FillingCache] = {}
        self._rechecks: Rechecks | None = None
        self._begun, self._step = math.nan, -1
        if trainer.optimizer is not None:
            held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
            if any(parameter.requires_grad and id(parameter) not in held for parameter in trainer.model.parameters()):
                raise ConfigError(
                    "attach: the optimizer that the trainer was given lacks parameters that the plan trains: apply the "
                    "plan first (frostline.apply), then make the optimizer"
                )
        setattr(trainer, _ATTRIBUTE, self)
        trainer.add_callback(self)
        trainer.train = self._around_training(trainer.train)
        trainer.training_step = self._checked(trainer.training_step)
        changes = self._applied.adapters or self._applied.plan.forward.why_not_plain
        self._saving_notice = save_trained(trainer) if changes else None
        trainer.create_optimizer = self._with_rates(trainer.create_optimizer)
        if trainer.model_init is not None:
            trainer.call_model_init = self._with_plan(trainer.call_model_init)
        self._show()

    @property
    def _model(self) -> Any:
        return text_model(self._trainer.model)

    @property
    def _applied(self) -> Applied:
        return cast(Applied, applied_to(self._model))

    def _begin_model(self, model: Any) -> Schedule:
        """Apply the plan to the model that the trainer has now."""
        found = self._start(model)
        check_own_trainer(found)
        if found.first.forward.drops and (handler := self._trainer.accelerator.ddp_handler) is not None:
            handler.find_unused_parameters = True  # made before the arguments said so
        self._observer = Observer(text_model(model), found.observes, running().same)
        return found

    # Around the trainer's own methods.

    def _around_training(self, own: Any) -> Any:
        @functools.wraps(own)
        def train(resume_from_checkpoint: Any = None, *given: Any, **options: Any) -> Any:
            check_same(self._trainer.train_dataset, self._applied.plan, self._schedule)
            report_live(self._trainer, lambda: self._applied)
            if resume_from_checkpoint:
                asked = resume_from_checkpoint
                folder = get_last_checkpoint(str(self._trainer.args.output_dir)) if asked is True else asked
                self._resume(Path(folder) if folder else None)
            try:
                return own(resume_from_checkpoint, *given, **options)
            finally:
                self._end()

        return train

    def _checked(self, own: Any) -> Any:
        @functools.wraps(own)
        def training_step(*given: Any, **options: Any) -> Any:
            step = self._trainer.state.global_step
            if step != self._step:  # the first batch of a step; by now callbacks have changed what they change
                self._step = step
                self._check_positions(step)
            return own(*given, **options)

        return training_step

    def _with_rates(self, own: Any) -> Any:
        @functools.wraps(own)
        def create_optimizer(*given: Any, **options: Any) -> Any:
            optimizer = own(*given, **options)
            named = {id(parameter): name for name, parameter in self._model.named_parameters()}
            scale_groups(optimizer, {i: self._applied.lr_scales.get(name, 1.0) for i, name in named.items()})
            return optimizer

        return create_optimizer

    def _with_plan(self, own: Any) -> Any:
        @functools.wraps(own)
        def call_model_init(*given: Any, **options: Any) -> Any:
            model = own(*given, **options)
            self._schedule = self._begin_model(model)
            return model

        return call_model_init

    # Events of the training.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun, self._step = time.perf_counter(), -1
        with running().together():
            self._begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if self._applied.plan.forward.drops:
            begin_step(self._model, step)
        if step == 0 or self._schedule.settled:
            return
        plan = self._schedule.next(step, self._observer)
        if plan is not None:
            self._change(plan)
            trainer = self._trainer
            optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
            regroup(optimizer, trainer.lr_scheduler, parameter_groups(trainer, self._model, self._applied.lr_scales))
            synchronize_what_trains(trainer)
            followed = [s.follow(self._training(m)) for s, m in zip(self._sessions, self._models(), strict=False)]
            if not (followed and all(followed)):
                self._end_sessions()
                self._begin_sessions()
            self._rechecks = Rechecks(self._model, step)
            self._show()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._schedule.settled:
            self._observer.collect()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._follows and args.should_save and folder.is_dir():
            write_json(
                folder / STATE_FILE, {"plan": document(self._applied.plan), "schedule": self._schedule.state_dict()}
            )
            self._observer.save(folder)

    @property
    def _follows(self) -> bool:
        """Whether the plan may change, or has changed."""
        return not self._schedule.settled or self._applied.plan != self._schedule.first

    def _resume(self, folder: Path | None) -> None:
        if folder is None or not self._follows:
            return
        if not (folder / STATE_FILE).is_file():
            raise CheckpointError(
                f"{folder}: it has no {STATE_FILE}, so the schedule cannot go on: use a checkpoint that was saved with "
                "frostline.attach"
            )
        saved = read_json(folder / STATE_FILE, "schedule state")
        with reading(folder / STATE_FILE, "schedule state"):
            self._schedule.load_state_dict(saved["schedule"])
            plan = Plan.read(saved["plan"], str(folder / STATE_FILE))
        self._change(plan)
        self._observer.load(folder)

    def _change(self, plan: Plan) -> None:
        change(plan, self._model)
        self._observer = Observer(self._model, self._schedule.observes, running().same)

    # The savings, from the first step under a plan to the last.

    def _begin(self, step: int) -> None:
        self._end()  # a training that failed may begin again: auto_find_batch_size
        self._positions = self._found_positions()  # first: the sessions see calls before they do
        self._begin_sessions()
        self._rechecks = Rechecks(self._model, step)
        self._show()

    def _begin_sessions(self) -> None:
        refusal = self._cache_refusal()
        if refusal is not None:
            if self._mode == "on" and self._schedule.settled:
                raise not_possible(refusal)
            self._report = CacheReport(reason=refusal, declined=self._schedule.settled and self._mode != "off")
        else:
            self._sessions = [self._session(model) for model in self._models()]
            for session in self._sessions:
                session.begin()
            with self._trainer.accelerator.autocast():
                fill_with_known_rows(self._trainer, self._sessions[0])

    def _end_sessions(self) -> None:
        for session in self._sessions:
            session.end()
        if self._sessions:
            self._report = self._sessions[0].report
        self._sessions = []

    def _end(self) -> None:
        self._end_sessions()
        if self._positions is not None:
            self._positions_notices = self._positions.notices
            self._positions.remove()
            self._positions = None
        self._show()

    def _cache_refusal(self) -> str | None:
        args = self._trainer.args
        if self._mode == "off":
            return "activation_cache: off"
        if args.n_gpu > 1 or args.torch_compile:
            return COMPILED if args.torch_compile else "rows are spread over devices (DataParallel)"
        if args.neftune_noise_alpha is not None:
            return "NEFTune adds noise to the embeddings in every pass"
        if self._mode == "auto" and passes_over_rows(self._trainer, len(self._models())) < 1.5:
            return "each row is seen once, so that storing its states would save nothing"
        return None

    def _models(self) -> list[Any]:
        """The text models that are called: the one that trains, and a reference beside it."""
        other = getattr(self._trainer, "ref_model", None)
        return [self._model, *([text_model(other)] if isinstance(other, nn.Module) else [])]

    def _training(self, model: Any) -> Training:
        trainer, applied = self._trainer, self._applied
        plan, anatomy = applied.plan, applied.anatomy
        if model is not self._model:  # a reference model is in eval mode, and nothing of it trains
            plan, anatomy = plan.model_copy(update={"frozen_dropout": False}), find_anatomy(model, adapted=True)
        return Training(
            model=model,
            plan=plan,
            anatomy=anatomy,
            datasets=(),
            collate=lambda rows: {},
            device=trainer.args.device,
            batch_size=trainer.args.train_batch_size,
            trained=applied.lr_scales if model is self._model else (),
            label_names=trainer.label_names or (),
            lowest=None if self._schedule.settled else lowest_boundary(self._schedule, applied.plan),
        )

    def _session(self, model: Any) -> LoopSession:
        return LoopSession(
            self._training(model),
            required=self._mode == "on" and self._schedule.settled and model is self._model,
            limit=self._limit,
            caches=self._caches,
            changed=self._show,
        )

    def _found_positions(self) -> LossPositions | None:
        refusal = self._positions_refusal()
        self._positions_notices = () if refusal is None else (f"loss positions are off: {refusal}",)
        if not self._asked_positions or refusal is not None:
            return None
        with self._probing():
            return use_loss_positions(self._model, self._applied.anatomy, few_rows(self._trainer).batch, exact=False)

    @contextmanager
    def _probing(self) -> Iterator[None]:
        with ExitStack() as contexts:
            for session in self._sessions:
                contexts.enter_context(session.paused())
            contexts.enter_context(self._trainer.accelerator.autocast())
            yield

    def _positions_refusal(self) -> str | None:
        trainer = self._trainer
        if not self._asked_positions:
            return None
        own = transformers.Trainer.compute_loss
        if type(trainer).compute_loss is not own or "compute_loss" in vars(trainer) or trainer.compute_loss_func:
            return "the trainer computes its loss itself, and may read all outputs"
        if trainer.label_smoother is not None:
            return "label_smoothing_factor reads all logits"
        return positions_refusal(trainer, self._model, self._applied)

    def _check_positions(self, step: int) -> None:
        """Compare the loss positions with plain training again, where that is due."""
        positions, rechecks = self._positions, self._rechecks
        if positions is None or rechecks is None or not (positions.last_block or positions.chunked_head):
            return
        if not rechecks.due(step, time.perf_counter() - self._begun):
            return
        with rechecks.timed(), self._probing():
            found = hook_above(self._model, self._applied.anatomy) or positions.recheck(few_rows(self._trainer).batch)
        if found is not None:
            positions.give_up(rechecks.since(step, found))
            self._show()
        rechecks.passed = step

    def _show(self) -> None:
        """Put what the savings did on the trainer, where a user looks for it."""
        report = self._sessions[0].report if self._sessions else self._report
        positions = self._positions_notices if self._positions is None else self._positions.notices
        self._trainer.cache_report = report
        others = [notice for notice in (report.notice, self._saving_notice) if notice is not None]
        args, applied = self._trainer.args, self._applied
        self._trainer.notices = (*positions, *others, *plan_settings(args, applied.plan), *slow_dtype(args, applied))
