"""The hidden states after each block, at the tokens that are read, from one forward pass.

B batch rows, T tokens, R tokens that are read, d hidden width, n blocks of a stack
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.anatomy import Anatomy
from frostline.hooks import capture, hidden_given, hidden_of
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
        capture(model, {"last": anatomy.blocks[-1].name}, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {stack: torch.stack(found) for stack, found in states.items()}
