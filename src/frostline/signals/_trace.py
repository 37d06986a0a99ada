"""The hidden states after each block, at the tokens that are read, from one forward pass.

B batch rows, T tokens, R tokens that are read, d hidden width, n blocks of a stack, V vocabulary, C classes
m numbers of the head
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy
from frostline.core.errors import UnsupportedModel
from frostline.hooks import capture, hidden_given, hidden_of, with_hidden
from frostline.signals._reading import ReadTokens


def trace(
    model: nn.Module, anatomy: Anatomy, batch: Mapping[str, Any], reads: Mapping[str, ReadTokens]
) -> dict[str, Tensor]:
    """Stack -> h_0 ... h_n at the tokens that are read, [n + 1, R, d], in float32.

    Other states are not kept, and the forward pass ends at the last block.

    Args:
        model: the model, in eval mode.
        anatomy: of the model.
        batch: the model's inputs.
        reads: stack -> the tokens that are read (`reads_of`).
    """
    with _noted(model, anatomy, reads) as states:
        capture(model, {"last": anatomy.blocks[-1].name}, batch)
    return {stack: torch.stack(found) for stack, found in states.items()}


def trace_head(
    model: nn.Module, anatomy: Anatomy, batch: Mapping[str, Any], reads: Mapping[str, ReadTokens]
) -> tuple[dict[str, Tensor], Tensor]:
    """What `trace` gives, and the directions [R, m, d] that the head reads at those tokens.

    A direction is the gradient of one number of the head with respect to the last block's output, through everything
    between them: for a head of one matrix without a norm before it, a row of that matrix. The numbers are those of all
    classes, or the score of the label token alone: the rows of a whole vocabulary span every direction.

    Args:
        model: the model, in eval mode, of one stack. Its tensors get no gradients.
        anatomy: of the model.
        batch: the model's inputs.
        reads: stack -> the tokens that are read (`reads_of`).

    Raises `UnsupportedModel` when the head does not read one of these tokens.
    """
    (read,) = reads.values()
    last: list[Tensor] = []

    def begin_graph(_module: Any, _inputs: Any, output: Any) -> Any:
        last.append(hidden_of(output).detach().requires_grad_())
        torch.set_grad_enabled(True)  # until `no_grad` below ends: no graph of the blocks is kept
        return with_hidden(output, last[0])

    with _noted(model, anatomy, reads) as states, torch.no_grad():
        handle = model.get_submodule(anatomy.blocks[-1].name).register_forward_hook(begin_graph)
        try:
            output = model(**{name: value for name, value in batch.items() if name != "labels"})
        finally:
            handle.remove()
        scores = _scores(output.logits, read, label_only=anatomy.has_lm_head)
        found = [read.gather(torch.autograd.grad(score, last, retain_graph=True)[0]) for score in scores]
    directions = torch.stack(found, dim=1)
    if not directions.any(dim=-1).any(dim=-1).all():
        raise UnsupportedModel("projected_residual: the head does not read the token that is measured: use shift")
    return {stack: torch.stack(found) for stack, found in states.items()}, directions


def _scores(logits: Tensor, read: ReadTokens, *, label_only: bool) -> Tensor:
    """[m]: each of the head's numbers, summed over the tokens. A token's number depends on no other read state.

    Args:
        logits: [B, C] for rows, [B, T, C] for tags, [B, T, V] for a vocabulary.
        read: the tokens.
        label_only: take the number of the label alone.
    """
    own = logits[read.rows] if logits.dim() == 2 else logits[read.rows, read.positions]
    if label_only and read.targets is not None:
        own = own.gather(-1, read.targets[:, None])
    return own.float().sum(0)


@contextmanager
def _noted(model: nn.Module, anatomy: Anatomy, reads: Mapping[str, ReadTokens]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, every forward pass adds h_0 ... h_n of each stack to what this gives."""
    states: dict[str, list[Tensor]] = {stack: [] for stack in reads}
    handles = []

    def note_input(stack: str) -> Any:
        def note(_module: Any, args: Any, kwargs: Any) -> None:
            states[stack].append(reads[stack].gather(hidden_given(args, kwargs)))

        return note

    def note_output(stack: str) -> Any:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            states[stack].append(reads[stack].gather(hidden_of(output)))

        return note

    seen = set()
    for block in anatomy.blocks:
        module = model.get_submodule(block.name)
        if block.stack not in seen:
            seen.add(block.stack)
            handles.append(module.register_forward_pre_hook(note_input(block.stack), with_kwargs=True))
        handles.append(module.register_forward_hook(note_output(block.stack)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
