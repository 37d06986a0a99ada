"""Let a model compute head and last block only at the loss positions, and check that its training is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from frostline.adapters import AdapterPart
from frostline.anatomy import Anatomy, get_block
from frostline.core.labels import IGNORED
from frostline.hooks import (
    CALL,
    FEWER_BITS,
    SAME_NUMBERS,
    Override,
    compare_training,
    computes_in_fewer_bits,
    device_of,
    foreign_hook,
    is_overridden,
)
from frostline.loss_positions._head import ChunkedHead, HeadNotChunkable, default_chunk, find_head
from frostline.loss_positions._last_block import NarrowBlock, NotNarrowable, find_projections
from frostline.loss_positions._positions import LossRule, one_label_a_token, positions_read
from frostline.loss_positions._rule import OutputWithoutNames, draws_random_numbers, find_rule

# Arguments of a call that ask for more output than a loss, or bring keys and values of earlier tokens.
_NEEDS_MORE_OUTPUT = (
    "past_key_values",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)


def use_loss_positions(
    model: Any, anatomy: Anatomy, batch: Mapping[str, Any], *, chunk: int | None = None, exact: bool = True
) -> LossPositions:
    """Let training steps of `model` compute head and last block only at the loss positions, in place.

    The head and the loss run at the labelled positions. The last block computes keys and values of all tokens, and
    everything else at the loss positions. Calls without labels, in eval mode or without gradients do not change.

    The model runs on `batch` a few times. Where the loss or the gradients are not the model's own, the model computes
    at every position again, and a notice says so. Which parameters train may change afterwards.

    Args:
        model: a transformers model with a loss of its own.
        anatomy: its blocks.
        batch: a small batch with labels on the model's device, best with rows of different lengths.
        chunk: the largest number of positions for which the head runs at once; None: those of 64 MiB of logits.
        exact: let the last block run at every position where it has dropout, because dropout draws other random numbers
            for fewer positions.
    """
    return LossPositions(model, anatomy, dict(batch), chunk or default_chunk(anatomy.vocab_size), exact)


def hook_above(model: Any, anatomy: Anatomy) -> str | None:
    """Say in one line that a user's hook is on the last block or above, where it may look at every position."""
    others = tuple(f"{block.name}." for block in anatomy.blocks[:-1])
    found = foreign_hook(pair for pair in model.named_modules() if not f"{pair[0]}.".startswith(others))
    return None if found is None else f"a forward hook on {found} may look at every position"


class LossPositions:
    """What `use_loss_positions` did to a model.

    Attributes:
        rule: which positions of the last block's output the loss reads.
        last_block: whether the last block runs only there.
        chunked_head: whether the head runs only there.
        notices: what runs at every position and why, one line each.
    """

    def __init__(self, model: Any, anatomy: Anatomy, batch: dict[str, Any], chunk: int, exact: bool) -> None:
        self._model = model
        self._always = self._off = False
        self._block: NarrowBlock | None = None
        self._head: ChunkedHead | None = None
        self.notices: tuple[str, ...] = ()
        self._config = model.config.get_text_config()
        self._pad_token_id = self._config.pad_token_id
        block = get_block(model, anatomy, anatomy.blocks[-1].index)
        self.rule = LossRule.ALL
        self._patch = Override(model, self._forward)
        self._own = self._patch.own
        try:
            self.rule = find_rule(model, block, batch)
        except OutputWithoutNames as reason:
            self._run_at_every_position(str(reason))
            return
        asked = next((name for name in _NEEDS_MORE_OUTPUT if self._asks_for(name, batch)), None)
        if asked is not None:
            self._run_at_every_position(f"the model returns more than a loss ({asked})")
            return
        if batch.get("labels") is None:
            self._runs_at_every_position("block", "the loss has no labels for a row or a token")
            return
        try:
            self._narrow_block(block, batch, exact)
            self._chunk_head(anatomy, batch, chunk)
            self._keep_what_agrees(batch)
        except BaseException:
            self.remove()
            raise

    @property
    def last_block(self) -> bool:
        return self._block is not None

    @property
    def chunked_head(self) -> bool:
        return self._head is not None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside this context, the model computes at every position."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def recheck(self, batch: Mapping[str, Any]) -> str | None:
        """Compare again, on a batch. Returns in one line how the loss positions alone differ, or None."""
        used = self.last_block or self.chunked_head
        return self._disagreement(batch) if used else None

    def give_up(self, reason: str) -> None:
        """Compute at every position for the rest of the training. `reason` becomes a notice."""
        self._drop_block()
        self._head = None
        self._run_at_every_position(reason)

    def remove(self) -> None:
        """Let the model compute at every position again. An override that was added later stays."""
        self._off = True
        self._drop_block()
        self._head = None
        self._patch.remove()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._patch.by_name(args, kwargs)
        read = self._positions_read(inputs) if self._applies_to(inputs) else None
        if read is None:
            return self._own(*args, **kwargs)
        if self._block is not None:
            self._block.set_positions(read, even_if_many=self._always)
        try:
            return self._own(**inputs) if self._head is None else self._head(inputs)
        finally:
            if self._block is not None:
                self._block.positions = None

    def _applies_to(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a call is a training step that needs nothing but the loss."""
        return (
            not self._off
            and (self.last_block or self.chunked_head)
            and (self._model.training or self._always)
            and torch.is_grad_enabled()
            and inputs.get("labels") is not None
            and inputs.get("return_dict") is not False
            and not any(self._asks_for(name, inputs) for name in _NEEDS_MORE_OUTPUT)
        )

    def _asks_for(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a call asks for this, or else the model's config."""
        given = inputs.get(name)
        return _is_given(getattr(self._config, name, None) if given is None else given)

    def _positions_read(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        read = positions_read(self.rule, inputs, self._pad_token_id)
        # For a batch without any label the model decides what its loss is (0, or not a number).
        return read if read is not None and read.any() else None

    def _narrow_block(self, block: nn.Module, batch: Mapping[str, Any], exact: bool) -> None:
        if is_overridden(block, CALL):
            return None  # it lies below the boundary, and its stored states replace it
        if self.rule is LossRule.ALL:
            return self._runs_at_every_position("block", "the loss reads all of its output")
        parts = (part for part in block.modules() if isinstance(part, AdapterPart))
        if reasons := [reason for part in parts if (reason := part.why_all_tokens()) is not None]:
            return self._runs_at_every_position("block", reasons[0])
        if exact and draws_random_numbers(self._model, block, batch):
            return self._runs_at_every_position(
                "block", "it has dropout, which draws other random numbers for fewer positions"
            )
        try:
            self._block = NarrowBlock(block, find_projections(self._model, block, batch))
        except NotNarrowable as reason:
            self._runs_at_every_position("block", str(reason))
        return None

    def _chunk_head(self, anatomy: Anatomy, batch: Mapping[str, Any], chunk: int) -> None:
        if not self.rule.by_label:
            if one_label_a_token(batch.get("labels")):
                self._runs_at_every_position("head", "the loss reads other positions than the labelled ones")
            return  # A classifier's head is small.
        try:
            head = find_head(self._model, self._own, anatomy, self.rule, batch)
            self._head = ChunkedHead(self._own, head, self.rule, chunk)
        except HeadNotChunkable as reason:
            self._runs_at_every_position("head", str(reason))

    def _keep_what_agrees(self, batch: Mapping[str, Any]) -> None:
        """Keep only what gives the model's own loss and gradients.

        First the block alone is checked on two batches, then the head, together with the block if that is kept. The
        head runs in at least two chunks for this, so that joining chunks is checked too.
        """
        head, self._head = self._head, None
        other = _with_other_masks(batch)
        if self._block is not None:
            reason = self._disagreement(batch) or self._disagreement(other)
            if reason is not None:
                self._drop_block()
                self._runs_at_every_position("block", reason)
        if head is not None:
            self._head = replace(head, chunk=max(1, head.labelled(batch) // 2))
            reason = self._disagreement(batch)
            self._head = None if reason is not None else head
            if reason is not None:
                self._runs_at_every_position("head", reason)

    def _disagreement(self, batch: Mapping[str, Any]) -> str | None:
        def loss(narrow: bool) -> torch.Tensor:
            self._off, self._always = not narrow, narrow
            found: torch.Tensor = self._model(**batch).loss
            return found

        tolerance = FEWER_BITS if computes_in_fewer_bits(self._model, device_of(self._model)) else SAME_NUMBERS
        try:
            reason = compare_training(self._model, lambda: loss(False), lambda: loss(True), tolerance)
        finally:
            self._off = self._always = False
        return None if reason is None else f"at the loss positions alone {reason}"

    def _drop_block(self) -> None:
        if self._block is not None:
            self._block.remove()
            self._block = None

    def _run_at_every_position(self, reason: str) -> None:
        for what in ("block", "head"):
            self._runs_at_every_position(what, reason)

    def _runs_at_every_position(self, what: str, reason: str) -> None:
        where = "the last block" if what == "block" else "the head"
        self.notices += (f"{where} runs at every position: {reason}",)


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and (not isinstance(value, int) or value != 0)


def _with_other_masks(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without padding, for which the model may make no mask at all, and with labels at other tokens."""
    changed = dict(batch)
    mask, labels = batch.get("attention_mask"), batch["labels"]
    if mask is not None and mask.dim() == 2:
        changed["attention_mask"] = torch.ones_like(mask)
    if one_label_a_token(labels) and labels.shape[1] > 2:
        changed["labels"] = labels.clone()
        changed["labels"][:, 1::2] = IGNORED
        changed["labels"][:, 2] = 0
    return changed
