"""Cut a model at its boundary: find out what each block below has to return to the rest of the model.

    B rows, T tokens, d hidden width

Training from the activation cache runs the model's own forward, with stand-ins (`StandIns`) for the blocks below the
boundary. A stand-in must return what its block returns. This file observes that once, on a tiny batch. A block
returns its hidden states alone, or a tuple that begins with them. Any other entry of the tuple is one of:

1. an argument of the block itself: the stand-in returns its own argument;
2. something that no block above reads, such as attention weights: the stand-in returns None;
3. something that only the block can compute and a block above reads, such as T5's position bias, which block 0 makes:
   then the block has to run as before (`Cut.running`), and only its hidden states are replaced.
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
"""What an entry of a block's tuple after the hidden states is: the name or position of the argument that it equals
(case 1 above), None (case 2), or `MADE` (case 3)."""

MADE = "made by the block"


class CannotCut(FrostlineError):
    """The frozen bottom of this model cannot be replaced; the message says why, in one clause."""


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
    """The blocks of one stack (encoder or decoder) that lie below the boundary, and the modules before them.

    Attributes:
        stream: name of the states after the last of these blocks.
        blocks: their names, in order.
        returns: what each of them returns.
        embeddings: modules before the first block that turn token ids [B, T] into [B, T, d].
        dtype: of what the embeddings return, before the first block converts it to its own.
        state_dtype: of the states after the last block.
    """

    stream: str
    blocks: tuple[str, ...]
    returns: tuple[BlockReturn, ...]
    embeddings: tuple[str, ...]
    dtype: torch.dtype
    state_dtype: torch.dtype


@dataclass(frozen=True)
class Cut:
    """How a model is cut at block `boundary`: its one or two stacks with blocks below, in running order."""

    boundary: int
    width: int
    stacks: tuple[StackCut, ...]

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(stack.stream for stack in self.stacks)

    @property
    def running(self) -> tuple[str, ...]:
        """Blocks below the boundary that still have to run, because blocks above read something they compute."""
        pairs = (pair for stack in self.stacks for pair in zip(stack.blocks, stack.returns, strict=True))
        return tuple(name for name, returned in pairs if returned.needs_block)


def last_blocks(cut: Cut) -> dict[str, str]:
    """Stream -> the last block below the boundary. The stream is the hidden states that this block returns."""
    return {stack.stream: stack.blocks[-1] for stack in cut.stacks}


def find_cut(model: nn.Module, anatomy: Anatomy, boundary: int, *, weightless: bool = False) -> Cut:
    """Cut `model` below block `boundary`. The model runs once for this, on two rows of three tokens.

    Args:
        model: a transformers model.
        anatomy: its blocks and embeddings.
        boundary: the lowest block that stays; 1 or more.
        weightless: run on zeros that take no memory instead of the weights, which may lie on the meta device.

    Raises `CannotCut` when the model does not run on such a batch, or has a router loss, which reads every block.
    """
    if getattr(model.config, "output_router_logits", False):
        raise CannotCut("the router loss reads every block, also those below the boundary (output_router_logits=true)")
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
    """The block below which nothing depends on training.

    This is the plan's boundary, with one exception: when the boundary lies in the decoder and the norm at the end of
    the encoder trains, it is the end of the encoder, because every decoder block reads the output of that norm.
    """
    encoder = sum(block.stack == "encoder" for block in anatomy.blocks)
    if anatomy.encoder_decoder and plan.boundary > encoder:
        norms = {tensor.name for tensor in anatomy.final_norm}
        if any(trained.tensor.name in norms for trained in select(plan, anatomy)):
            return encoder
    return plan.boundary


class _Trace:
    """Records the arguments and outputs of the blocks below the boundary while the model runs on a tiny batch."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, below: Mapping[str, list[str]]) -> None:
        self.model = model
        self.width = anatomy.hidden_size
        self.of_embeddings = {tensor.name for tensor in anatomy.embeddings}
        self.blocks = {block.name: block.stack for block in anatomy.blocks}
        self.below = {name for names in below.values() for name in names}
        self.last = list(below.values())[-1][-1]  # the block below the boundary that runs last
        self.outputs: dict[str, tuple[Any, ...]] = {}  # block -> what it returned
        self.in_tuple: set[str] = set()  # blocks that returned a tuple
        self.given: dict[str, dict[str | int, Any]] = {}  # block -> its arguments by position or name
        self.fed: dict[str, list[str]] = {}  # block -> the embeddings that ran since the block before it
        self.dtypes: dict[str, torch.dtype] = {}  # embedding -> of what it returned
        self._pending: list[str] = []  # embeddings that ran since the last block

    def run(self, weightless: bool) -> None:
        with stoppable() as stop:
            self._run(weightless, stop)
        if self.last not in self.outputs:
            raise CannotCut("the model's forward does not reach the boundary")

    def _run(self, weightless: bool, stop: Stop) -> None:
        """Run the model until the first block above the boundary is called."""
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
        """What was recorded of the blocks `names` of one stack."""
        fed = self.fed[names[0]]
        first = self.given[names[0]]
        # Only the outermost modules: a stand-in for one replaces all modules inside it.
        embeddings = tuple(name for name in fed if not any(name.startswith(other + ".") for other in fed))
        return StackCut(
            stream=stream,
            blocks=tuple(names),
            returns=tuple(BlockReturn(name in self.in_tuple, self._extras(name)) for name in names),
            embeddings=embeddings,
            dtype=self.dtypes[embeddings[0]] if embeddings else first[0 if 0 in first else "hidden_states"].dtype,
            state_dtype=self.outputs[names[-1]][0].dtype,
        )

    def _extras(self, name: str) -> tuple[Extra, ...]:
        # The run stops at the first block above the boundary, so `given` holds the arguments of that one only. That is
        # enough: a stack calls all of its blocks with the same side inputs (masks, positions, biases). Where it does
        # not, the comparison before the first step finds it.
        above = (
            other for other, stack in self.blocks.items() if stack == self.blocks[name] and other not in self.below
        )
        read = [value for other in above for value in self.given.get(other, {}).values()]
        return tuple(_extra(entry, self.given[name], read) for entry in self.outputs[name][1:])

    def _inputs(self, device: torch.device) -> dict[str, Tensor]:
        ids = torch.ones(2, 3, dtype=torch.long, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        config: Any = self.model.config
        if getattr(config, "is_encoder_decoder", False):
            end = config.eos_token_id
            if isinstance(end, int) and end < config.vocab_size:  # T5's and BART's classifiers read the end of a text
                ids[ids == end] = 0
                ids[:, -1] = end
            inputs["decoder_input_ids"] = ids
        return inputs

    def _feeds(self, name: str, module: nn.Module) -> bool:
        """Whether a module outside the blocks has parameters, and all of them belong to the embeddings."""
        parameters = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
        if not parameters or any(name == block or name.startswith(block + ".") for block in self.blocks):
            return False
        known = dict(self.model.named_parameters())
        return all(path in self.of_embeddings or path not in known for path in parameters)

    def _after_embedding(self, name: str) -> Any:
        def note(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            # Only a module that maps each id to a vector can be replaced by zeros of the right shape.
            ids = token_ids((*args, *kwargs.values()))
            plain = isinstance(output, Tensor) and ids is not None and output.shape == (*ids.shape, self.width)
            if plain:
                self._pending.append(name)
                self.dtypes[name] = output.dtype

        return note

    def _before_block(self, name: str, stop: Stop) -> Any:
        def note(_module: Any, args: Any, kwargs: Any) -> None:
            self.given[name] = {**dict(enumerate(args)), **kwargs}
            self.fed[name], self._pending = self._pending, []
            if self.last in self.outputs:  # so this is the first block above the boundary
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
    """The first integer tensor among `values`: the ids that an embedding looks up."""
    return next((v for v in values if isinstance(v, Tensor) and not v.is_floating_point() and v.dim() > 0), None)


def _extra(entry: Any, given: Mapping[str | int, Any], read_above: list[Any]) -> Extra:
    """Which of the three cases at the top of this file an entry is. Tensors are compared by identity (`is`)."""
    if entry is None:
        return None
    if (argument := next((key for key, value in given.items() if value is entry), None)) is not None:
        return argument
    return MADE if any(value is entry for value in read_above) else None
