"""The shortcuts of a trainer: stored states for the frozen bottom, head and last block at the loss positions alone.

They begin with a plan and end with it. They are used only where training stays the same, which is compared before the
first step and again while training runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from transformers import TrainingArguments

from frostline.bottom import CacheReport, CacheSession
from frostline.checkpoints import imitated
from frostline.core.console import PlainConsole
from frostline.engine._accumulation import FewRows, PartsTrainer
from frostline.engine._progress import start_bar
from frostline.hooks import Rechecks, state_kept
from frostline.loss_positions import LossPositions, hook_above, use_loss_positions
from frostline.plan import Plan
from frostline.processes import running
from frostline.surgery import Applied

COMPILED = "torch_compile makes one graph of the whole model"
LOGIT_BYTES = 192 * 2**20
"""The most that the logits of a chunk of loss positions take in a step."""
LOOKED_AT = 64


def positions_refusal(trainer: Any, model: Any, applied: Applied) -> str | None:
    """Why head and last block run at every position, whoever computes the loss; None where the model decides.

    Args:
        trainer: a `transformers.Trainer`.
        model: the transformers model that it trains.
        applied: what the plan did to the model.
    """
    rows = trainer.train_dataset
    if trainer.args.torch_compile:
        return COMPILED
    if applied.plan.forward.layered:
        return "a layered loss reads the output of every block"
    if isinstance(rows, Mapping):  # sentence-transformers: one for each loss
        return "the rows come from several data sets"
    if not hasattr(rows, "__len__"):
        return "the rows come as a stream"
    return hook_above(model, applied.anatomy)


def plan_settings(args: TrainingArguments, plan: Plan) -> list[str]:
    """Where a training has another learning rate or length than its plan was chosen for, a line each.

    Args:
        args: of the training.
        plan: what trains.
    """
    wanted = {"learning_rate": plan.learning_rate, "max_steps": plan.max_steps}
    return [
        f"the plan was chosen for {name}={value}, and the training arguments have {name}={getattr(args, name)}"
        for name, value in wanted.items()
        if value is not None and getattr(args, name) != value
    ]


def slow_dtype(args: TrainingArguments, applied: Applied) -> list[str]:
    """A line where frozen tensors are in a dtype that this machine only imitates.

    Args:
        args: of the training.
        applied: the plan, on its model.
    """
    whole = all(block.mode == "full" for block in applied.plan.blocks)
    if whole or args.bf16 or args.fp16 or not imitated(applied.base_dtype):
        return []
    return [
        f"the frozen tensors are in {applied.base_dtype}, which this machine imitates: a step can take several times "
        "as long as in float32: load the model with dtype=torch.float32 (a run: leave frozen_dtype out)"
    ]


def console_of(args: TrainingArguments) -> Console | None:
    """Where the start of a training is shown; None where its progress bars are off."""
    return None if args.disable_tqdm or not args.should_log else PlainConsole(stderr=True)


def few_rows(trainer: Any) -> FewRows:
    """A few rows of a `transformers.Trainer` as one batch, to try on them what training may do.

    They are the first three. Where logits at all of their positions would take more memory than a step does, they are
    the shortest of the first ones.
    """
    rows, collate = trainer.train_dataset, trainer._get_collator_with_removed_columns(trainer.data_collator)
    with state_kept(rows, trainer.data_collator, device=trainer.args.device):
        few = _not_too_large(rows, trainer.model)
        return FewRows(few, dict(trainer._prepare_inputs(collate(few))))


def _not_too_large(rows: Any, model: Any) -> list[Any]:
    few = [rows[index] for index in range(min(3, len(rows)))]
    config = getattr(model, "config", None)
    width = getattr(config.get_text_config(decoder=True), "vocab_size", 0) if config is not None else 0
    if _logit_bytes(few, width) <= LOGIT_BYTES:
        return few
    shortest = sorted((rows[index] for index in range(min(LOOKED_AT, len(rows)))), key=lambda row: _positions([row]))
    # With one row there would be no padding, and less would be tried.
    return shortest[:3] if _logit_bytes(shortest[:3], width) <= LOGIT_BYTES else shortest[:2]


def _logit_bytes(rows: Sequence[Any], width: int) -> int:
    """What the loss of a language model takes at all positions: three tensors of logits in float32."""
    return 12 * width * len(rows) * _positions(rows)


def _positions(rows: Sequence[Any]) -> int:
    """The positions of the longest row, where rows have a label for each; else 0."""
    labels: Iterator[Any] = (row.get("labels") for row in rows if isinstance(row, Mapping))
    # One label of a row may be a number or a tensor without dimensions.
    lengths = (len(own) for own in labels if hasattr(own, "__len__") and getattr(own, "ndim", 1) != 0)
    return max(lengths, default=0)


class ShortcutsTrainer(PartsTrainer):
    """A `transformers.Trainer` that begins, checks and ends the shortcuts of the current plan."""

    session: CacheSession
    loss_positions: bool
    positions: LossPositions | None = None
    train_dataset: Any
    data_collator: Any
    _positions_notices: tuple[str, ...] = ()
    _rechecks: Rechecks | None = None
    _begun = False
    _first_step: float = math.nan

    def _collate(self) -> Any:
        """The collator, without the columns that the model does not read."""
        return self._get_collator_with_removed_columns(self.data_collator)

    @property
    def cache_report(self) -> CacheReport:
        """What the activation cache did."""
        return self.session.report

    @property
    def notices(self) -> tuple[str, ...]:
        """What runs as it would without frostline and why, one line each."""
        positions = self._positions_notices if self.positions is None else self.positions.notices
        others = (self.session.report.notice, self.parts_notice)
        asked = plan_settings(self.args, self.applied.plan)
        slow = slow_dtype(self.args, self.applied)
        return (*positions, *(notice for notice in others if notice is not None), *asked, *slow)

    def _begin_plan(self) -> None:
        self._begun = True
        with start_bar(console_of(self.args)) as bar:
            if not self.args.disable_tqdm:
                self.session.stage, self.session.progress = bar.stage, bar.rows
            self.session.begin()
            bar.stage("checks of the loss positions")
            self._begin_positions()
        self._rechecks = Rechecks(self.text_model, self.state.global_step)

    def _follow_plan(self) -> None:
        """Go on with the shortcuts under the plan of now. Which parts train does not change what the loss reads."""
        self.session.follow()
        if self._rechecks is not None:
            self._rechecks.note()

    def _begin_positions(self) -> None:
        refusal = self._positions_refusal()
        self._positions_notices = () if refusal is None else (f"loss positions are off: {refusal}",)
        narrow = self.loss_positions and refusal is None
        if hasattr(self.train_dataset, "__len__") and (narrow or (self._share is None and self._has_parts())):
            few = self._few()
            self._find_share(few)
            self.positions = self._find_positions(few) if narrow else None

    def _positions_refusal(self) -> str | None:
        """Why head and last block run at every position whatever the model; None where the model decides."""
        if not self.loss_positions:
            return None
        if self.label_smoother is not None:
            return "label_smoothing_factor reads all logits"
        if self.compute_loss_func is not None or self._loss_is_overridden():
            return "a loss of your own (compute_loss) may read all logits"
        return positions_refusal(self, self.text_model, self.applied)

    def _loss_is_overridden(self) -> bool:
        """Whether a subclass has a `compute_loss` of its own, which may read all logits."""
        return False

    def _check_again(self, step: int, *, last: bool = False) -> None:
        """Compare the shortcuts with plain training again, where that is due; give up what is no longer the same."""
        group, checks = running(), self._rechecks
        changed = self.session.changed()
        due = False
        if checks is not None:
            due = checks.passed != step if last else checks.due(step, time.perf_counter() - self._first_step)
        if not group.any(due or changed is not None):
            return
        if (changed := group.first_found(changed)) is not None:
            self.session.give_up(f"off since step {step}: {changed}")
        if not group.any(due) or checks is None:
            return
        with checks.timed():
            with self.positions.suspended() if self.positions is not None else nullcontext():
                found = group.first_found(self.session.recheck())
            if found is not None:
                self.session.give_up(checks.since(step, found))
            if self.positions is not None and (self.positions.last_block or self.positions.chunked_head):
                few = self._few()
                with self._holding(few), self.accelerator.autocast():
                    hook = hook_above(self.text_model, self.applied.anatomy)
                    found = group.first_found(hook or self.positions.recheck(few.batch))
                if found is not None:
                    self.positions.give_up(checks.since(step, found))
        checks.passed = step

    def _few(self) -> FewRows:
        return few_rows(self)

    def _holding(self, part: FewRows) -> AbstractContextManager[None]:
        return self.session.holding(part.rows, part.batch)

    def _check_last(self) -> None:
        """Compare before the shortcuts end: the last steps are checked too."""
        if self.session.active or self.positions is not None:
            self._check_again(self.state.global_step, last=True)

    def _end_plan(self) -> None:
        self._begun = False
        if self.positions is not None:
            self.positions.remove()
        self.session.end()

    def _find_positions(self, few: FewRows) -> LossPositions:
        with self._holding(few), self.accelerator.autocast():
            found = use_loss_positions(self.text_model, self.applied.anatomy, few.batch, exact=False)
        each = running().every((found.last_block, found.chunked_head))
        if len(set(each)) > 1:
            found.give_up("not all processes found the same outputs with them")
        return found
