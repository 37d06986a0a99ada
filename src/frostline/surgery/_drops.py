"""Blocks and adapters that are left out at random in a pass of the training (methods.md 10: LayerDrop, AdapterDrop).

A pass begins where the module that holds a stack's blocks is called. What is left out is drawn then, and the forward of
these blocks is replaced until that module returns. Activation checkpointing is a part of the forward that is replaced,
so the backward pass runs no block again that was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.hooks import RemovableHandle

from frostline.adapters import kind_of
from frostline.anatomy import Anatomy, Block, adapted, skippable, stacks
from frostline.core.errors import FrostlineError, PlanError, first_line
from frostline.hooks import (
    Override,
    Passes,
    PerThread,
    Turns,
    attribute_set,
    hidden_given,
    overridden,
    undisturbed,
)
from frostline.plan import Plan
from frostline.surgery._tokens import cannot_run, three_tokens

Run = Callable[..., Any]


def check_drops(model: nn.Module, plan: Plan, anatomy: Anatomy) -> None:
    """Raises `PlanError` when `plan` leaves out blocks or adapters that `model` cannot do without."""
    layerdrop, adapterdrop = plan.forward.layerdrop, plan.forward.adapterdrop
    if layerdrop.acts and not any(skippable(plan, anatomy)):
        raise PlanError("forward.layerdrop: no block trains that could be skipped: use a plan that trains some blocks")
    if layerdrop.acts and cannot_run(model):
        raise PlanError(
            "forward.layerdrop: a part of the model is not in memory, so what its blocks return cannot be seen: use "
            "the whole model"
        )
    with_adapters = adapted(plan)
    if adapterdrop.acts and not with_adapters:
        raise PlanError("forward.adapterdrop: no block has an adapter: use a plan with adapters, such as lora")
    if adapterdrop.evaluate and adapterdrop.evaluate >= len(with_adapters):
        raise PlanError(
            f"forward.adapterdrop.evaluate: {adapterdrop.evaluate} of {len(with_adapters)} blocks with adapters: use "
            f"at most {len(with_adapters) - 1}"
        )
    if adapterdrop.robust:
        own = ["embeddings"] if plan.embeddings.own is not None else []
        own += [f"block {index}" for index, mode in enumerate(plan.blocks) if mode.own is not None]
        if own:
            raise PlanError(
                f"forward.adapterdrop: {own[0]} trains its own tensors, so gradients cross the blocks whose adapters "
                "are left out: use a plan that trains adapters only"
            )
    for index, kind in enumerate(map(kind_of, plan.blocks)) if plan.forward.drops else ():
        if kind is not None and kind.why_not_scheduled is not None:
            raise PlanError(f"forward: block {index}: {kind.why_not_scheduled}, nor be left out: use lora")


def install_drops(model: nn.Module, plan: Plan, anatomy: Anatomy) -> Iterator[RemovableHandle]:
    """Leave out blocks and adapters as `plan.forward` says, until all the handles are removed.

    Args:
        model: a model to which the plan was applied.
        plan: its plan, which `check_drops` accepts.
        anatomy: its blocks.
    """
    with_adapters = adapted(plan)
    forms = _forms_in(model, anatomy) if plan.forward.layerdrop.acts else {}
    for stack, able in zip(stacks(anatomy), skippable(plan, anatomy), strict=True):
        if able or set(with_adapters) & {block.index for block in stack}:
            yield from _Stack(model, plan, stack, able, with_adapters, forms).install()


class _Running(PerThread):
    """The passes through a stack that run in this thread, the innermost one last: what undoes their replacements."""

    def __init__(self) -> None:
        self.passes: list[ExitStack] = []


class _Stack:
    """What is left out of one stack.

    Args:
        model: the model.
        plan: its plan.
        stack: the stack's blocks.
        able: the numbers of its blocks that may be skipped.
        adapted: the numbers of all blocks, also of another stack, whose adapters may be left out; the lowest first.
        forms: what the blocks return.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        stack: Sequence[Block],
        able: Sequence[int],
        adapted: Sequence[int],
        forms: Mapping[int, _Form],
    ) -> None:
        self._blocks: Mapping[int, nn.Module] = {block.index: model.get_submodule(block.name) for block in stack}
        self._holder = model.get_submodule(stack[0].name.rpartition(".")[0].rpartition(".")[0])
        self._name, self._able, self._adapted = stack[0].stack, able, adapted
        self._others_train = len(able) < sum(plan.blocks[index].mode != "frozen" for index in self._blocks)
        self._watched = [self._blocks[index] for index in (*able, *adapted) if index in self._blocks]
        self._layerdrop, self._adapterdrop = plan.forward.layerdrop, plan.forward.adapterdrop
        self._passes = Passes.through(self._holder)
        self._forms = forms
        # What a block does is replaced for all threads, so passes through the stack run one after the other.
        self._turns = Turns()
        self._running = _Running()

    def install(self) -> Iterator[RemovableHandle]:
        yield self._holder.register_forward_pre_hook(self._begin)
        yield self._watched[0].register_forward_pre_hook(self._count)
        yield self._holder.register_forward_hook(self._end, always_call=True)

    def _begin(self, _holder: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            raise FrostlineError("forward: what a pass leaves out cannot be compiled: leave torch.compile out")
        self._turns.take()
        training = any(block.training for block in self._watched)  # the holder itself may be in eval mode
        skipped = self._skipped() if training else self._pruned()
        bare = set(self._adapted[: self._how_many_bare(training)]) & self._blocks.keys()
        undo = ExitStack()
        self._running.passes.append(undo)
        for index in skipped:
            undo.callback(_Replaced(self._blocks[index], partial(self._identity, index)).remove)
        for index in bare - skipped:
            undo.callback(_Replaced(self._blocks[index], partial(_bare, self._blocks[index])).remove)

    def _count(self, block: nn.Module, _inputs: Any) -> None:
        # Here, because shortcuts call the module around the blocks again for the head alone.
        self._passes.made += block.training

    def _end(self, _holder: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._running.passes:
            self._running.passes.pop().close()
            self._turns.give_back()

    def _skipped(self) -> set[int]:
        """The blocks that this pass of the training skips."""
        generator = self._passes.draw(self._layerdrop.seed, "layerdrop", self._name)
        while True:
            skipped = {index for index in self._able if generator.random() < self._layerdrop.p}
            # Where every block that trains is skipped, the loss may depend on nothing that trains.
            if not skipped or self._others_train or len(skipped) < len(self._able):
                return skipped

    def _pruned(self) -> set[int]:
        """The blocks that a pass outside training skips."""
        return set(self._able[1::2]) if self._layerdrop.evaluate == "every_other" else set()

    def _how_many_bare(self, training: bool) -> int:
        """How many of the blocks with adapters run without them in this pass."""
        if not training:
            return self._adapterdrop.evaluate
        if not self._adapterdrop.robust:
            return 0
        # The same number for every stack: blocks are counted over all of them.
        return self._passes.draw(self._adapterdrop.seed, "adapterdrop").randrange(len(self._adapted))

    def _identity(self, index: int, own: Run, *args: Any, **kwargs: Any) -> Any:
        """What a skipped block returns: the states that it is given, in the form in which it returns its own."""
        form, hidden = self._forms[index], hidden_given(args, kwargs)
        if form is None:
            return hidden
        given = dict([*_named(args, kwargs), (_NOTHING, None), (_MADE, Unmade(f"block {index}"))])
        return (hidden, *(given[name] for name in form))


_NOTHING, _MADE = "None", "made by the block"
_Form = tuple[int | str, ...] | None
"""What a block returns beside its states: the place or the name of an argument that it hands on, `_NOTHING`, or
`_MADE`. None where the states are all that it returns, without a tuple."""


def _forms_in(model: Any, anatomy: Anatomy) -> dict[int, _Form]:
    """What each block returns in a pass of three tokens."""
    forms: dict[int, _Form] = {}

    def note(index: int, _block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        forms[index] = _form_of(output, args, kwargs)

    hooks = [
        model.get_submodule(block.name).register_forward_hook(
            partial(note, block.index), with_kwargs=True, prepend=True
        )
        for block in anatomy.blocks
    ]
    try:
        with undisturbed(model), torch.no_grad():
            model.forward(**three_tokens(model, anatomy))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise PlanError(
            f"forward.layerdrop: {type(model).__name__} does not run on a few tokens ({first_line(error)}): use no "
            "layerdrop for it"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    return forms


def _form_of(output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Form:
    if not isinstance(output, tuple):
        return None
    given = _named(args, kwargs)

    def name_of(one: Any) -> int | str:
        return _NOTHING if one is None else next((name for name, value in given if value is one), _MADE)

    return tuple(map(name_of, output[1:]))


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[int | str, Any]]:
    return [*enumerate(args), *kwargs.items()]


class Unmade:
    """In place of what a skipped block would have made (attention weights). Most models do not read it."""

    def __init__(self, block: str) -> None:
        self.block = block

    @classmethod
    def __torch_function__(cls, _function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        blocks = [one.block for one in (*args, *(kwargs or {}).values()) if isinstance(one, cls)]
        raise FrostlineError(
            f"forward.layerdrop: {' '.join(blocks)} was skipped, and the model reads what it would have made: leave "
            "out output_attentions, or use no layerdrop for this model"
        )


class _Replaced:
    """Replaces the forward of a block, until `remove`. `run` gets the replaced method and the arguments."""

    def __init__(self, block: nn.Module, run: Run) -> None:
        self._run = run
        self._override = Override(block, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._override.own, *args, **kwargs)

    def remove(self) -> None:
        self._override.remove()


def _bare(block: nn.Module, own: Run, *args: Any, **kwargs: Any) -> Any:
    """A block without its adapters. Nothing in it or below it trains then, so a pass in training needs no gradients."""
    layers = [layer for layer in block.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        if layer.merged:
            layer.unmerge()
    grad = torch.is_grad_enabled() and not block.training
    base = overridden({layer: partial(_base_of, layer) for layer in layers})
    with torch.set_grad_enabled(grad), attribute_set(block, "gradient_checkpointing", False), base:
        return own(*args, **kwargs)


def _base_of(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return layer.base_layer(*args, **kwargs)
