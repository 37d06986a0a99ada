"""A step in several batches is the step of one batch of all their rows.

A step's rows may come as parts: `gradient_accumulation_steps` batches in a process, and one process beside another. A
loss that is a mean over rows or over labelled tokens has the gradient

    sum over parts  (n_i / N)  gradient of the part's own loss,        n_i of the N rows (or labels) in part i

transformers divides by the number of labels of the whole step where the model's loss takes it (`num_items_in_batch`).
Elsewhere it leaves the sum (classifiers: k parts give k times the gradient) or takes the mean over parts (which differs
where parts have unequal numbers of labels). Which of these is exact for a model's head and loss is not asked of its
class: it is tried on a few rows, against the same rows as one batch.

Shapes: rows R of a batch, tokens T of a row; labels are (R,), (R, T) or (R, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapters import mixtures
from frostline.core.errors import first_line
from frostline.core.labels import IGNORED
from frostline.engine._evaluation import EvaluatingTrainer
from frostline.hooks import FEWER_BITS, OTHER_BATCH, any_sharded, compare_training, computes_in_fewer_bits
from frostline.processes import running

Batch = dict[str, Any]
LossOf = Callable[["FewRows", Tensor | None], Tensor]
"""The loss of a part, given the number of labels in the whole step (None: a mean over the part itself)."""


@dataclass(frozen=True)
class FewRows:
    """Rows of a step, and the batch made of them, on the model's device."""

    rows: Sequence[Any]
    batch: Batch


class Share(StrEnum):
    """What decides how much of a step's gradient is a part's."""

    LIBRARY = "library"
    """As transformers has it: the loss divides by the labels of the whole step."""
    LABELS = "labels"
    """The part's share of the labels."""
    NEXT_LABELS = "next labels"
    """The part's share of the labels, without the first of each row, which nothing predicts."""
    ROWS = "rows"
    """The part's share of the rows."""


class PartsTrainer(EvaluatingTrainer):
    """A `transformers.Trainer` in which a step of several batches is the step of one batch of all their rows."""

    compute_loss: Any
    loss_is_scaled_for_ga: bool | None
    parts_notice: str | None = None
    """Why a step of several batches is not the step of one batch, if it is not."""
    _share: Share | None = None
    _weights: Iterator[float | None] = iter(())

    def _find_share(self, few: FewRows) -> None:
        """Decide how the batches of a step are weighed, if a step has several of them. `few` are rows to try it on."""
        if self._share is not None or not self._has_parts():
            return
        reason = "the loss is not a mean over rows or labels"
        found: Share | None = None
        if self.loss_is_scaled_for_ga is not None:
            found = Share.LIBRARY  # a subclass that says how its loss is to be divided
        else:
            try:
                found = find_share(self.model, self._loss_of, few, next_labels=self._loss_shifts_labels)
            except Exception as error:  # the user's own loss, in a use that it may not expect
                reason = f"the loss of a few rows cannot be computed beforehand ({first_line(error)})"
        found, reason = running().same((found, reason))
        balanced = any(router.balance for router in mixtures(self.text_model))  # in training alone, so it is not tried
        if balanced and found is not None:
            reason = "the balance loss of the experts is not a mean over rows or labels"
        if balanced or found is None:
            accumulates, processes = self.args.gradient_accumulation_steps, self.args.world_size
            batches, name = accumulates * processes, "gradient_accumulation_steps" if accumulates > 1 else "processes"
            self.parts_notice = (
                f"{name}: {reason}: a step is the mean over its {batches} batches, not the step "
                "of one batch of all their rows"
            )
        self._share = found or _countable(few.batch, self._loss_shifts_labels)

    def _holding(self, part: FewRows) -> AbstractContextManager[None]:
        """Inside this context, passes of the part's batch are right even where a cache knows its rows by content."""
        return nullcontext()

    def _has_parts(self) -> bool:
        args = self.args
        return bool(args.gradient_accumulation_steps * args.world_size > 1 and args.n_gpu <= 1)

    def _loss_of(self, part: FewRows, labels: Tensor | None) -> Tensor:
        with self._holding(part), self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(self.model, dict(part.batch), num_items_in_batch=labels)
        return loss

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._share is None and self._has_parts() and batches:  # a stream, whose rows cannot be had beforehand
            with self.accelerator.autocast():  # as in the forward, which accelerate has wrapped by now
                self._find_share(FewRows([], dict(self._prepare_inputs(batches[0]))))
        # Nobody knows beforehand where a stream ends. transformers makes a step after `num_batches` batches only, and
        # adds what is left to the first step of the next epoch. Batches that weigh nothing make the step complete.
        absent = num_batches - len(batches) if batches and self._has_parts() else 0
        self._weights = iter([*self._weights_of(batches), *[0.0] * absent])
        return [*batches, *batches[-1:] * absent], labels

    def _weights_of(self, batches: Sequence[Mapping[str, Any]]) -> Sequence[float | None]:
        if self._share is None or self._share is Share.LIBRARY:
            return [None] * len(batches)  # as transformers has it
        counts = [_count(batch, self._share) or 0 for batch in batches]
        if self.args.world_size == 1:
            return weights_of(counts)
        total = torch.tensor(sum(counts), device=self.args.device)
        everywhere = int(self.accelerator.gather(total).sum())
        return [weight * self.args.world_size for weight in weights_of(counts, everywhere)]  # processes are averaged

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        weight = next(self._weights, None)
        if weight is None:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        compute = self.compute_loss

        def weighed(model: nn.Module, batch: Batch, *given: Any, **options: Any) -> Any:
            if not weight and not any_sharded(model.parameters()):
                return _nothing(model)
            # What processes share (FSDP2), all of them have to run.
            return weight * compute(model, batch if weight else _labelled(batch), *given, **options)

        self.compute_loss, self.loss_is_scaled_for_ga = weighed, True  # of this step only: the class has its own
        try:
            loss = super().training_step(model, inputs, None)
        finally:
            del self.compute_loss, self.loss_is_scaled_for_ga
        return loss


def find_share(model: nn.Module, loss_of: LossOf, few: FewRows, *, next_labels: bool) -> Share | None:
    """The share by which a step in parts is the step of one batch, tried on a few rows without dropout.

    Args:
        model: what trains.
        loss_of: the loss of a batch, as training computes it.
        few: at least two rows, as one batch.
        next_labels: whether transformers counts labels without the first of each row.

    Returns None when no share is exact: the loss is not a mean over rows or labels.
    """
    whole, parts = _in_parts(few)
    device = next(value for value in whole.batch.values() if isinstance(value, Tensor)).device
    tolerance = FEWER_BITS if computes_in_fewer_bits(model, device) else OTHER_BATCH
    counted = Share.NEXT_LABELS if next_labels else Share.LABELS
    labels = _count(whole.batch, counted)
    total = None if labels is None else torch.tensor(labels, device=device)
    of_parts = (
        None if labels is None else torch.tensor(sum(_count(p.batch, counted) or 0 for p in parts), device=device)
    )

    def in_parts(share: Share) -> Tensor:
        if share is Share.LIBRARY:
            return torch.stack([loss_of(part, of_parts) for part in parts]).sum()
        weights = weights_of([_count(part.batch, share) or 0 for part in parts])
        losses = [weight * loss_of(part, None) for weight, part in zip(weights, parts, strict=True) if weight]
        return torch.stack(losses).sum()

    def exact(share: Share) -> bool:
        items = total if share is Share.LIBRARY else None
        return compare_training(model, lambda: loss_of(whole, items), lambda: in_parts(share), tolerance) is None

    possible = [share for share in (counted, Share.LABELS, Share.NEXT_LABELS, Share.ROWS) if _count(whole.batch, share)]
    return next(filter(exact, [*([] if total is None else [Share.LIBRARY]), *possible]), None)


def _in_parts(few: FewRows) -> tuple[FewRows, list[FewRows]]:
    """A batch and its parts: all rows but the last, and the last.

    Labels of tokens are changed so that the parts have unequal numbers of them: then only one share is exact. A batch
    of which not everything has one entry for each row (packed rows) is both parts instead: twice the same rows have the
    same mean.
    """
    batch, rows = few.batch, rows_in(few.batch)
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if rows < 2 or len(tensors) < len(batch) or any(not value.dim() or len(value) != rows for value in tensors):
        return few, [few, few]
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point():
        batch = batch | {"labels": _unequal(labels)}
    slices = (slice(-1), slice(-1, None))
    cut = [FewRows(few.rows[some], {name: value[some] for name, value in batch.items()}) for some in slices]
    return FewRows(few.rows, batch), cut


def _unequal(labels: Tensor) -> Tensor:
    """Labels (R, T) of which each row has at least one, and the last row half of its own."""
    labels = labels.clone()
    known = labels[labels.ne(IGNORED)]
    for row in labels:
        if row[1:].eq(IGNORED).all():
            row[-1] = known[0] if len(known) else 0
    found = labels[-1].ne(IGNORED).nonzero().flatten()
    labels[-1, found[: len(found) // 2]] = IGNORED
    return labels


def weights_of(counts: Sequence[int], total: int | None = None) -> list[float]:
    """The share of each count in their sum, or in `total`; equal shares when nothing is counted."""
    whole = sum(counts) if total is None else total
    return [count / whole if whole else 1 / len(counts) for count in counts]


def rows_in(batch: Mapping[str, Any]) -> int:
    """The number of rows of a batch: the length of its tensors."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()), 0)


def _countable(batch: Batch, next_labels: bool) -> Share:
    counted = Share.NEXT_LABELS if next_labels else Share.LABELS
    return Share.ROWS if _count(batch, counted) is None else counted


def _count(batch: Mapping[str, Any], share: Share) -> int | None:
    """How much of what `share` counts is in a batch; None where it has no labels to count."""
    if share is Share.ROWS:
        return rows_in(batch)
    labels = batch.get("shift_labels")
    if labels is None:
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and share is Share.NEXT_LABELS and labels.dim() > 1:
            labels = labels[..., 1:]
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    return int(labels.ne(IGNORED).sum())


def _labelled(batch: Batch) -> Batch:
    """The batch with a label at every position, so that its loss is a number. It is to weigh nothing."""
    found = {name: batch[name] for name in ("labels", "shift_labels") if isinstance(batch.get(name), Tensor)}
    return {**batch, **{name: labels.masked_fill(labels == IGNORED, 0) for name, labels in found.items()}}


def _nothing(model: nn.Module) -> Tensor:
    """The loss of a part without labels, whose own mean would be 0 / 0: zero, with zero gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.stack([parameter.flatten()[0].float() for parameter in trained]).sum() * 0
