"""Save and resume a training under a plan: delta, optimizer, schedule and random generators, without pickle.

A checkpoint is written to a temporary folder next to its place and then moved there, so it is complete or absent.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from frostline.adapters import merge_adapters
from frostline.anatomy import text_model
from frostline.checkpoints import (
    OPTIMIZER_FILE,
    OPTIMIZER_TENSORS,
    SCHEDULER_FILE,
    load_delta,
    load_optimizer,
    load_scheduler,
    random_state,
    save_delta,
    save_optimizer,
    save_scheduler,
    set_random_state,
)
from frostline.core.errors import CheckpointError
from frostline.core.files import UNFINISHED, atomic_folder, disk_errors, read_json, reading, sweep, write_json
from frostline.engine._generators import generators_file
from frostline.engine._left import LeftState
from frostline.engine._observe import Observer
from frostline.engine._plan_change import PlanChange, read_changes
from frostline.engine._ranks import load_ranks, save_ranks
from frostline.engine._trainer_state import TRAINER_STATE_FILE, check_trainer_state
from frostline.plan import Schedule
from frostline.processes import running
from frostline.surgery import AS_GIVEN, Applied, applied_to, one_dtype, to_plain

SCHEDULE_FILE = "schedule.json"


class SavingTrainer(transformers.Trainer):
    """A `transformers.Trainer` whose checkpoints hold what the plan trains, and from which it resumes exactly."""

    optimizer: Any
    data_collator: Any
    schedule: Schedule
    changes: list[PlanChange]
    observer: Observer
    left: LeftState | None
    _staging: str | None = None
    _trained: Mapping[str, torch.Tensor] | None = None
    """The trained tensors, where processes share them and have gathered them to be saved."""

    @property
    def applied(self) -> Applied:
        """What the current plan does to the model."""
        return cast(Applied, applied_to(cast(nn.Module, self.model)))

    @property
    def text_model(self) -> Any:
        """The transformers model in `model`, which the plan is about: itself, or the one inside a PEFT model."""
        return text_model(self.model)

    @property
    def _as_given(self) -> bool:
        return self.applied.plan.strategy == AS_GIVEN

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or cast(str, super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        run_folder.mkdir(parents=True, exist_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with running().together(), self._staged(run_folder) as staging:
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

    @contextmanager
    def _staged(self, run_folder: Path) -> Iterator[str]:
        """A temporary folder of the process that writes. The others write nothing."""
        if not self.args.should_save:
            yield str(run_folder)
            return
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=run_folder) as staging:
            yield staging

    def _point_best_checkpoint_to(self, run_folder: Path, staged: Path) -> None:
        name = f"checkpoint-{self.state.best_global_step}"
        if name == staged.name or (run_folder / name).is_dir():  # a best step without a checkpoint has no folder
            self.state.best_model_checkpoint = str(run_folder / name)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_FILE))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False, *, whole: bool = False) -> None:
        """Save the delta; with `whole`, an ordinary checkpoint, which any tool for transformers models loads.

        Args:
            output_dir: the folder; by default that of `args`.
            whole: write every tensor, with LoRA merged. The model is copied in memory for this.

        Raises `PlanError` with `whole` when adapters depend on the input, so that they cannot be merged.
        """
        if not whole:
            with running().together() if _internal_call else nullcontext():  # before the processes wait in another way
                super().save_model(output_dir, _internal_call)
            return
        copied = self._copied()
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            self._plain(copied).save_pretrained(folder)
            self._save_tokenizer(folder)

    def _copied(self) -> Any:
        """A copy of the model for the process that saves it."""
        return copy.deepcopy(self.model) if self.args.should_save else None

    def _plain(self, copied: Any) -> Any:
        """A copy of the model as an ordinary one, with its adapters merged."""
        if not self._as_given:
            return to_plain(copied)
        if not isinstance(copied, PeftModel):
            return copied
        return one_dtype(merge_adapters((copied,)))

    def _states_at(self) -> int:
        """The boundary of the states in use."""
        return 0

    def _resume_states(self, boundary: int) -> None:
        """Begin with the states at the same boundary, if the plan has changed."""

    def _observe(self, model: Any = None) -> Observer:
        """What measures the signals that the schedule reads, under the plan of now; `model` will be the trainer's."""
        return Observer(self.model if model is None else model, self.schedule.observes, self._shared)

    def _shared(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values of the first process, for all that train together."""
        return running().same(values)

    def _save_tokenizer(self, folder: str | Path) -> None:
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # transformers calls this in all processes
            return
        folder = Path(output_dir or self.args.output_dir)
        if self._as_given:
            self.model.save_pretrained(folder, state_dict=state_dict)  # transformers would add a pickle
        else:
            staged = self._staging is not None and folder.is_relative_to(self._staging)
            moves_to = folder.parent.parent / folder.name if staged else None
            save_delta(self.model, folder, moves_to=moves_to, tensors=self._trained)
        changes = [change.document() for change in self.changes]
        state = {"state": self.schedule.state_dict(), "changes": changes, "states_at": self._states_at()}
        write_json(folder / SCHEDULE_FILE, state)
        self.observer.save(folder)
        self._save_tokenizer(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.should_save:
            return
        save_optimizer(self._bare_optimizer(), self._names(), Path(output_dir))
        save_scheduler(self.lr_scheduler, Path(output_dir))
        save_ranks(self.applied.peft_models, Path(output_dir))
        if self.left is not None:
            self.left.save(Path(output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        for rank, state in enumerate(running().every(random_state())):
            if self.args.should_save:
                write_json(Path(output_dir) / _rng_file(rank), state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        with running().together():
            self._check_complete(folder)
            if self.args.should_save:
                sweep(folder.parent)
            self._load_weights(folder, model)

    def _load_weights(self, folder: Path, model: Any) -> None:
        if self._as_given:
            super()._load_from_checkpoint(str(folder), model)
        else:
            load_delta(self.model if model is None else model, folder)
        saved = read_json(folder / SCHEDULE_FILE, "schedule state")
        with reading(folder / SCHEDULE_FILE, "schedule state"):
            self.schedule.load_state_dict(saved["state"])
            self.changes = read_changes(self.schedule.first, saved["changes"])
            self._resume_states(saved["states_at"])
        self.observer = self._observe()
        with reading(folder, "state of what a schedule observes"):
            self.observer.load(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        with running().together():
            with reading(folder, "optimizer state"):
                load_optimizer(self._bare_optimizer(), self._names(), folder)
            with reading(folder, "scheduler state"):
                load_scheduler(self.lr_scheduler, folder)
            if self.left is not None:
                with reading(folder, "optimizer state"):
                    self.left.load(folder)
            with reading(folder, "state of ranks"):
                load_ranks(self.applied.peft_models, folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with running().together():
                path = generators_file(self, self.applied, Path(checkpoint))
                with reading(path, "generator state"):
                    set_random_state(read_json(path, "generator state"))

    def _load_callback_state(self) -> None:
        with reading(Path(self.args.output_dir), "state of the trainer's callbacks"):
            super()._load_callback_state()

    def _check_complete(self, folder: Path) -> None:
        """Raises `CheckpointError` when a part is missing without which training would go on with other numbers."""
        parts = (TRAINER_STATE_FILE, SCHEDULE_FILE, OPTIMIZER_FILE, OPTIMIZER_TENSORS, SCHEDULER_FILE)
        if not folder.is_dir():
            raise CheckpointError(f"Can't find a valid checkpoint at {folder}: use the folder of a checkpoint")
        missing = [name for name in parts if not (folder / name).is_file()]
        if missing:
            why = " (save_only_model=true leaves it out)" if OPTIMIZER_FILE in missing else ""
            raise CheckpointError(
                f"{folder}: it has no {missing[0]}{why}, so training cannot go on as if it had never stopped: use a "
                "complete checkpoint, or begin a new training with frostline.load"
            )
        generators_file(self, self.applied, folder)
        check_trainer_state(folder)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    def _last_checkpoint(self) -> str | None:
        folder = str(self.args.output_dir)
        return get_last_checkpoint(folder) if Path(folder).is_dir() else None

    def _last_checkpoint_hint(self) -> str:
        last = self._last_checkpoint()
        return f"; the last checkpoint is {last}" if last else ""


def _rng_file(rank: int) -> str:
    return f"rng_{rank}.json"
