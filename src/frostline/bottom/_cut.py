"""Where a model is cut at its boundary, and what each part below must still give to what lies above.

    B rows, T tokens, d hidden width

The model's own forward keeps running, with stand-ins in the place of the blocks below. So what a stand-in has to
return is seen once, on a tiny batch: a block may return its hidden states alone or in a tuple; another entry of
that tuple may be one of the block's own arguments, something that no block above is given (attention weights), or
something that only the block can make and one above reads (T5's position bias, made in block 0). A block that
makes such a thing stays and keeps running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from frostline.anatomy import Anatomy, select
from frostline.core.errors import FrostlineError, first_line
from frostline.hooks import Stop, device_of, evaluation_mode, generators_kept, stoppable, zero_tensors
from frostline.plan import Plan

Extra = str | int | None
"""An entry of a block's tuple beside the hidden states: the name or position of the argument that it is,
`MADE` for what only the block can make, or None."""

MADE = "made by the block"


class CannotCut(FrostlineError):
    """The frozen bottom of this model cannot be replaced; the message says why, in one line."""


@dataclass(frozen=True)
class BlockReturn:
    """What a block returns: its hidden states [B, T, d], alone or in a tuple with `extras` after them."""

    in_tuple: bool
    extras: tuple[Extra, ...]

    @property
    def needs_block(self) -> bool:
        return MADE in self.extras


@dataclass(frozen=True)
class StackCut:
    """The blocks of one stack that lie below the boundary, in order, and the modules that only feed them.

    `stream` names the states after the last of them. `embeddings` are modules that turn token ids [B, T] into
    [B, T, d] in `dtype` before the first block.
    """

    stream: str
    blocks: tuple[str, ...]
    returns: tuple[BlockReturn, ...]
    embeddings: tuple[str, ...]
    dtype: torch.dtype
    state_dtype: torch.dtype


@dataclass(frozen=True)
class Cut:
    """A model's cut at a boundary: one or two stacks with blocks below it, in the order in which tokens pass."""

    boundary: int
    width: int
    stacks: tuple[StackCut, ...]

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(stack.stream for stack in self.stacks)

    @property
    def running(self) -> tuple[str, ...]:
        """Blocks below the boundary that have to keep running, since later ones read something they make."""
        pairs = (pair for stack in self.stacks for pair in zip(stack.blocks, stack.returns, strict=True))
        return tuple(name for name, returned in pairs if returned.needs_block)


def crossing(cut: Cut) -> dict[str, str]:
    """Stream -> the last block below the boundary, whose output it is."""
    return {stack.stream: stack.blocks[-1] for stack in cut.stacks}


def find_cut(model: nn.Module, anatomy: Anatomy, boundary: int, *, weightless: bool = False) -> Cut:
    """The cut of `model` below block `boundary` (1 or more), seen by running it on two rows of three tokens.

    With `weightless` no weight is read: every tensor is a zero seen through strides of 0, so the weights may lie
    on the meta device. Raises `CannotCut` when the model does not run so, or its router loss would read below.
    """
    if getattr(model.config, "output_router_logits", False):
        raise CannotCut("the router loss reads every block, also those below the boundary (output_router_logits)")
    below: dict[str, list[str]] = {}
    for block in anatomy.blocks[:boundary]:
        below.setdefault(block.stack, []).append(block.name)
    trace = _Trace(model, anatomy, below)
    trace.run(weightless)
    return Cut(
        boundary=boundary,
        width=anatomy.hidden_size,
        stacks=tuple(trace.stack(stream, names) for stream, names in below.items()),
    )


def cut_boundary(plan: Plan, anatomy: Anatomy) -> int:
    """The block below which nothing depends on training: the plan's boundary, or the end of the encoder when the
    norm there trains, since every decoder block reads what it makes."""
    encoder = sum(block.stack == "encoder" for block in anatomy.blocks)
    if anatomy.encoder_decoder and plan.boundary > encoder:
        norms = {tensor.name for tensor in anatomy.final_norm}
        if any(trained.tensor.name in norms for trained in select(plan, anatomy)):
            return encoder
    return plan.boundary


class _Trace:
    """Notes what blocks below the boundary are given and return, up to the blocks above that take over."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, below: Mapping[str, list[str]]) -> None:
        self.model = model
        self.width = anatomy.hidden_size
        self.of_embeddings = {tensor.name for tensor in anatomy.embeddings}
        self.blocks = {block.name: block.stack for block in anatomy.blocks}
        self.below = {name for names in below.values() for name in names}
        self.last = list(below.values())[-1][-1]
        self.outputs: dict[str, tuple[Any, ...]] = {}
        self.in_tuple: set[str] = set()
        self.given: dict[str, dict[str | int, Any]] = {}
        self.fed: dict[str, list[str]] = {}
        self._pending: list[str] = []

    def run(self, weightless: bool) -> None:
        with stoppable() as stop:
            self._run(weightless, stop)
        if self.last not in self.outputs:
            raise CannotCut("the model's forward does not reach its boundary")

    def _run(self, weightless: bool, stop: Stop) -> None:
        """Run the model until all that lies below the boundary has been seen."""
        handles = []
        for name, module in self.model.named_modules():
            if name in self.blocks:
                handles.append(module.register_forward_pre_hook(self._before_block(name, stop), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after_block(name)))
            elif self._feeds(name, module):
                handles.append(module.register_forward_hook(self._after_embedding(name), with_kwargs=True))
        try:
            with evaluation_mode(self.model), torch.no_grad(), generators_kept():
                if weightless:
                    functional_call(self.model, zero_tensors(self.model), (), self._inputs(torch.device("cpu")))
                else:
                    self.model(**self._inputs(device_of(self.model)))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CannotCut(f"the model does not run on a plain batch ({first_line(error)})") from error
        finally:
            for handle in handles:
                handle.remove()

    def stack(self, stream: str, names: list[str]) -> StackCut:
        fed = self.fed[names[0]]
        first = self.given[names[0]]
        return StackCut(
            stream=stream,
            blocks=tuple(names),
            returns=tuple(BlockReturn(name in self.in_tuple, self._extras(name)) for name in names),
            embeddings=tuple(name for name in fed if not any(name.startswith(other + ".") for other in fed)),
            dtype=first[0 if 0 in first else "hidden_states"].dtype,
            state_dtype=self.outputs[names[-1]][0].dtype,
        )

    def _extras(self, name: str) -> tuple[Extra, ...]:
        above = (
            other for other, stack in self.blocks.items() if stack == self.blocks[name] and other not in self.below
        )
        read = [value for other in above for value in self.given.get(other, {}).values()]
        return tuple(_extra(entry, self.given[name], read) for entry in self.outputs[name][1:])

    def _inputs(self, device: torch.device) -> dict[str, Tensor]:
        ids = torch.ones(2, 3, dtype=torch.long, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(self.model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids
        return inputs

    def _feeds(self, name: str, module: nn.Module) -> bool:
        """Whether a module has parameters, all of them the embeddings'."""
        parameters = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
        if not parameters or any(name == block or name.startswith(block + ".") for block in self.blocks):
            return False
        known = dict(self.model.named_parameters())
        return all(path in self.of_embeddings or path not in known for path in parameters)

    def _after_embedding(self, name: str) -> Any:
        def note(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            ids = token_ids((*args, *kwargs.values()))
            plain = isinstance(output, Tensor) and ids is not None and output.shape == (*ids.shape, self.width)
            if plain:
                self._pending.append(name)

        return note

    def _before_block(self, name: str, stop: Stop) -> Any:
        def note(_module: Any, args: Any, kwargs: Any) -> None:
            self.given[name] = {**dict(enumerate(args)), **kwargs}
            self.fed[name], self._pending = self._pending, []
            if self.last in self.outputs:
                stop()

        return note

    def _after_block(self, name: str) -> Any:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            entries = output if isinstance(output, tuple) else (output,)
            if not isinstance(entries[0], Tensor) or entries[0].dim() != 3:
                raise CannotCut(f"{name} does not return its hidden states")
            self.outputs[name] = entries
            if isinstance(output, tuple):
                self.in_tuple.add(name)

        return note


def token_ids(values: Any) -> Tensor | None:
    """The first tensor of whole numbers among `values`: the ids that an embedding looks up."""
    return next((v for v in values if isinstance(v, Tensor) and not v.is_floating_point() and v.dim() > 0), None)


def _extra(entry: Any, given: Mapping[str | int, Any], read_above: list[Any]) -> Extra:
    if entry is None:
        return None
    if (argument := next((key for key, value in given.items() if value is entry), None)) is not None:
        return argument
    return MADE if any(value is entry for value in read_above) else None
