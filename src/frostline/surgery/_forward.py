"""What a plan changes in the forward pass and in the loss: residual interaction, layered loss (methods.md 2), drops.

    B rows, T tokens, d hidden width

Each stack has its own states: h_0 enters its first block, and h_l is the state after its block l, counted from 1. A
state is recorded as the next block receives it, before any conversion of dtype. The model's own `hidden_states` are the
same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from frostline.adapters import kind_of
from frostline.anatomy import Anatomy, stacks
from frostline.core.errors import FrostlineError, PlanError, first_line
from frostline.hooks import (
    CALL,
    PerThread,
    Turns,
    hidden_given,
    hidden_of,
    overridden,
    undisturbed,
    with_hidden,
)
from frostline.plan import Plan
from frostline.surgery._drops import check_drops, install_drops
from frostline.surgery._residual import interact
from frostline.surgery._tokens import NO_ROUTER_LOSS, cannot_run, three_tokens


def install_forward(model: nn.Module, plan: Plan, anatomy: Anatomy) -> list[RemovableHandle]:
    """Make `model` compute what `plan.forward` says, until all the handles are removed. Call `check_forward` first.

    With a layered loss, the `loss` that the model returns in train mode is the layered one. Evaluation gives the
    ordinary loss, and the logits are always the model's own.

    Args:
        model: a model to which the plan was applied.
        plan: its plan.
        anatomy: its blocks.
    """
    handles: list[RemovableHandle] = []
    if plan.forward.interacts:
        for stack in stacks(anatomy):
            blocks = [model.get_submodule(block.name) for block in stack]
            handles += interact(blocks, plan.forward.residual.alpha, plan.forward.residual.span)
    if plan.forward.layered:
        handles += LayeredLoss(model, anatomy, plan.forward.losses).install()
    handles += install_drops(model, plan, anatomy)
    return handles


def check_forward(model: nn.Module, plan: Plan, anatomy: Anatomy) -> None:
    """Raises `PlanError` when `plan.forward` cannot be computed exactly on `model`, which is left as it was."""
    if not plan.forward.changes:
        return
    check_drops(model, plan, anatomy)
    name, config = type(model).__name__, model.config.to_dict()  # type: ignore[operator, union-attr]
    # Some models read it from their config in each pass, others have copied it to a module.
    own = [value for key, value in config.items() if key.endswith("layerdrop")]
    own += [value for module in model.modules() if isinstance(value := getattr(module, "layerdrop", None), float)]
    if any(own):
        raise PlanError(f"forward: {name} skips blocks at random in training: load it with layerdrop=0 in its config")
    span, deepest = plan.forward.residual.span, max(map(len, stacks(anatomy)))
    if plan.forward.interacts and span > deepest:
        raise PlanError(
            f"forward.residual.span: {span} is more than the {deepest} blocks of a stack of {name}: use at most "
            f"{deepest}"
        )
    if not plan.forward.layered:
        return
    if "labels" not in inspect.signature(model.forward).parameters:
        raise PlanError(f"forward.loss_weights: {name} computes no loss of its own: use a model with a task head")
    last_stack = len(stacks(anatomy)[-1])
    first = len(anatomy.blocks) - last_stack
    if any(index < first for index in plan.forward.losses):
        raise PlanError(
            f"forward.loss_weights: the states of an encoder do not go through final norm and head: use weight 0 for "
            f"the first {first} of the {len(anatomy.blocks)} blocks"
        )
    if config.get("output_router_logits") and not hasattr(model, "router_aux_loss_coef"):
        raise PlanError(
            f"forward.loss_weights: the router loss of {name} cannot be separated from the rest of its loss: use "
            "output_router_logits=false in its config"
        )
    if (reason := LayeredLoss(model, anatomy, plan.forward.losses).disagreement()) is not None:
        raise PlanError(f"forward.loss_weights: {reason}: use no loss_weights for {name}")


def check_loss_is_the_models(plan: Plan, computed_outside: bool) -> None:
    """Raises `PlanError` when a plan changes the model's loss, but the loss is computed outside the model."""
    if not computed_outside:
        return
    if plan.forward.layered:
        raise PlanError(
            "forward.loss_weights: the model itself computes a layered loss: leave out label_smoothing_factor and "
            "compute_loss_func, or the weights"
        )
    for kind in filter(None, map(kind_of, plan.blocks)):
        if (term := kind.loss_term) is not None:
            raise PlanError(
                f"{kind.mode.label}: {term.what} is added to the model's own loss: leave out label_smoothing_factor "
                f"and compute_loss_func, or {term.leave_out}"
            )


@dataclass
class _Recorded:
    """What one pass has recorded: states, and what else the blocks returned."""

    states: dict[int, Tensor] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)


class _Passes(PerThread):
    """The passes of the model that run in this thread, the innermost one last; None for one that records nothing."""

    def __init__(self) -> None:
        self.running: list[_Recorded | None] = []

    @property
    def now(self) -> _Recorded | None:
        return self.running[-1] if self.running else None


class LayeredLoss:
    """Makes the loss of `model` sum_l lambda_l loss(h_l) (methods.md 2).

    After its own pass, the model runs once more for each weighted state except the last. In these passes every block
    just returns that state, so final norm, pooling, head and loss are the model's own code. A router loss counts once.
    For that time the blocks are replaced for all threads, so passes in training run one after the other.

    Args:
        model: a transformers model with a loss of its own.
        anatomy: its blocks.
        weights: block -> lambda_l, where it is not 0.
    """

    def __init__(self, model: Any, anatomy: Anatomy, weights: Mapping[int, float]) -> None:
        self._model, self._anatomy = model, anatomy
        self._names = [block.name for block in anatomy.blocks]
        self._last = len(self._names) - 1
        self._encoder = self._names[: len(self._names) - len(stacks(anatomy)[-1])]
        self._weights = {index: weight for index, weight in weights.items() if index != self._last}
        self._own_weight = weights.get(self._last, 0.0)
        self._passes, self._turns = _Passes(), Turns()

    def install(self) -> Iterator[RemovableHandle]:
        yield self._model.register_forward_pre_hook(self._begin)
        for index, name in enumerate(self._names):
            block = self._model.get_submodule(name)
            vars(block).setdefault(CALL, None)  # a copy that another thread makes meanwhile finds as many attributes
            if index - 1 in self._weights:
                yield block.register_forward_pre_hook(partial(self._record, index - 1), prepend=True, with_kwargs=True)
            yield block.register_forward_hook(partial(self._record_output, name))
        # This hook runs first: what others add to the loss (the balance loss of a mixture) gets no block's weight.
        yield self._model.register_forward_hook(self._finish, with_kwargs=True, prepend=True, always_call=True)

    def disagreement(self) -> str | None:
        """Say in one line why the extra passes would not be exact; None when they are.

        The model runs on one row of three tokens, and once more from the output of its last block: both must give the
        same. A model that lies partly on the meta device cannot run, and is not checked.
        """
        if cannot_run(self._model):
            return None
        hooks = list(self.install())
        inputs = three_tokens(self._model, self._anatomy)
        try:
            with undisturbed(self._model), torch.no_grad():
                recorded = self._begin_recording()
                own = self._model.forward(**inputs)
                again = self._run_again(recorded, self._last, (), inputs)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            return f"the model does not run again from the states of its last block ({first_line(error)})"
        finally:
            for hook in hooks:
                hook.remove()
            self._end()
        same = torch.equal(own.to_tuple()[0], again.to_tuple()[0])
        return None if same else "what follows the blocks reads more than the states of the last one"

    def _begin(self, model: nn.Module, _inputs: Any) -> None:
        if model.training:
            self._begin_recording()
        else:
            self._passes.running.append(None)

    def _begin_recording(self) -> _Recorded:
        self._turns.take()
        recorded = _Recorded()
        self._passes.running.append(recorded)
        return recorded

    def _end(self) -> None:
        if self._passes.running and self._passes.running.pop() is not None:
            self._turns.give_back()

    def _record(self, index: int, _block: Any, args: Any, kwargs: Any) -> None:
        if (recorded := self._passes.now) is not None:
            recorded.states[index] = hidden_given(args, kwargs)

    def _record_output(self, name: str, _block: Any, _inputs: Any, output: Any) -> None:
        if (recorded := self._passes.now) is not None:
            # Not the states themselves: those below the boundary would stay in memory.
            recorded.returned[name] = (None, *output[1:]) if isinstance(output, tuple) else None
            if name == self._names[-1]:
                recorded.states[self._last] = hidden_of(output)

    def _finish(self, _model: Any, args: Any, kwargs: Any, output: Any) -> None:
        recorded = self._passes.now
        try:
            if recorded is not None and isinstance(output, tuple):
                raise FrostlineError("a layered loss needs a model output with names: leave out return_dict=False")
            if recorded is not None and getattr(output, "loss", None) is not None:
                output.loss = self._loss(recorded, args, kwargs, output)
        finally:
            self._end()

    def _loss(self, recorded: _Recorded, args: Any, kwargs: Any, output: Any) -> Tensor:
        router = getattr(output, "aux_loss", None)
        # Blocks do not run in the extra passes, so these have no router logits.
        again = kwargs if router is None else {**kwargs, **NO_ROUTER_LOSS}
        terms = [weight * self._run_again(recorded, i, args, again).loss for i, weight in self._weights.items()]
        if self._own_weight:
            terms.append(self._own_weight * output.loss)
        if router is not None and self._own_weight != 1:
            # The model's own loss includes it, so it is there `own_weight` times already.
            terms.append((1 - self._own_weight) * self._model.router_aux_loss_coef * router)
        return torch.stack(terms).sum()

    def _run_again(self, recorded: _Recorded, index: int, args: Any, kwargs: Any) -> Any:
        """The model's output when all blocks of its last stack return the recorded state `index` [B, T, d].

        The blocks of an encoder before it return what they are given.
        """
        state = recorded.states[index]
        given = {
            self._model.get_submodule(name): partial(_return_state, returned, None if name in self._encoder else state)
            for name, returned in recorded.returned.items()
        }
        with overridden(given, CALL):
            return self._model.forward(*args, **kwargs)


def _return_state(returned: Any, state: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    """Replaces a block: returns `state` (None: the states it is given), and what else it `returned` before."""
    return with_hidden(returned, hidden_given(args, kwargs) if state is None else state)
