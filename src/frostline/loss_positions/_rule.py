"""Find the loss positions of a model: where its loss has a gradient with respect to the last block's output.

B rows, T tokens, C classes, d hidden width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.core.errors import FrostlineError
from frostline.hooks import CALL, Generators, Override, device_of, hidden_of, undisturbed, with_hidden
from frostline.loss_positions._positions import LossRule, one_label_a_token, positions_read


class OutputWithoutNames(FrostlineError):
    """The model's output has no loss or no logits by name (it may be a tuple); the message says so, in one clause."""


def find_rule(model: Any, block: nn.Module, inputs: Mapping[str, Any]) -> LossRule:
    """The rule that gives the loss positions of `model`. The model runs once for this.

    It is `ALL` when no other rule gives exactly the positions at which the gradient is not zero.

    Args:
        model: a transformers model with a loss of its own.
        block: its last block.
        inputs: a small batch, best with rows of different lengths.

    Raises `OutputWithoutNames` when the model's output has no loss or logits by name (`return_dict=False`).
    """
    inputs = dict(inputs)
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    if labels is None or ids is None or ids.dim() != 2:
        return LossRule.ALL  # answers in a text, choices between texts: heads of which the rules know nothing
    by_label = one_label_a_token(labels)
    pad_token_id = model.config.get_text_config().pad_token_id
    if not by_label:
        inputs["input_ids"] = _ending_in_padding(inputs, pad_token_id)
    try:
        found = _gradient(model, block, inputs, by_label)
    except (RuntimeError, ValueError, IndexError):  # BART's classifier refuses texts without an end, as changed above
        return LossRule.ALL
    if found is None or not found.any():
        return LossRule.ALL
    for rule in LossRule:
        if rule.by_label == by_label and rule is not LossRule.ALL:
            expected = positions_read(rule, inputs, pad_token_id)
            if expected is not None and torch.equal(expected, found):
                return rule
    return LossRule.ALL


def draws_random_numbers(model: Any, block: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether `block` draws random numbers in train mode, for dropout or router noise. `inputs` is a small batch."""
    device = device_of(model)
    states: list[Generators] = []

    def note(*_: Any) -> None:
        states.append(Generators.now(device))

    hooks = [block.register_forward_pre_hook(note), block.register_forward_hook(note)]
    try:
        with undisturbed(model, training=True):
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return len(states) != 2 or not states[0].same(states[1])


def _ending_in_padding(inputs: Mapping[str, Any], pad_token_id: int | None) -> Any:
    """`input_ids` with the padding token as the last attended token of the first row.

    On these, `LAST_TOKEN` and `LAST_ATTENDED` differ, so the gradient shows which of the two holds.
    """
    ids = inputs.get("input_ids")
    if ids is None or pad_token_id is None:
        return ids
    ids = ids.clone()
    mask = inputs.get("attention_mask")
    last = ids.shape[1] - 1 if mask is None else int(mask[0].nonzero().max())
    ids[0, last] = pad_token_id
    return ids


def _gradient(model: Any, block: nn.Module, inputs: Mapping[str, Any], by_label: bool) -> Tensor | None:
    """Where the loss (of a classifier: any of its logits) depends on the output of `block`, as a mask [B, T]."""
    leaves: list[Tensor] = []

    def begin_graph(*args: Any, **kwargs: Any) -> Any:
        output = around.own(*args, **kwargs)
        leaves.append(hidden_of(output).detach().requires_grad_())
        return with_hidden(output, leaves[-1])

    around = Override(block, begin_graph, CALL)  # a hook would not run where stored states replace the block
    try:
        with undisturbed(model):
            output = model(**inputs)
            missing = [name for name in ("loss", "logits")[: 1 if by_label else 2] if not hasattr(output, name)]
            if missing:
                raise OutputWithoutNames(f"the model's output, a {type(output).__name__}, has no '{missing[0]}'")
            (gradient,) = torch.autograd.grad(
                output.loss if by_label else (output.logits * torch.randn_like(output.logits)).sum(),
                leaves[-1],
                allow_unused=True,
            )
    finally:
        around.remove()
    return None if gradient is None or gradient.dim() != 3 else gradient.ne(0).any(-1)
