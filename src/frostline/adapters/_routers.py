"""Routers, which choose experts for each token; the loss that keeps the experts equally busy; statistics.

    N experts, k of them for each token; f_i expert i's share of all assignments, P_i its mean probability

The loss of a block is N sum_i f_i P_i. It is 1 when all experts are equally busy (Fedus et al. 2021; methods.md 5).
Padding does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapters._layer import AdapterPart, HybridLayer, without_adapters
from frostline.adapters._losses import add_to_loss, arguments
from frostline.core.errors import FrostlineError
from frostline.hooks import PerThread

ROUTER_STD = 0.02
"""The standard deviation of a router's first weights [inferred]."""


@dataclass(frozen=True)
class Routing:
    """A router's result for tokens [...] in one pass: `probabilities` [..., N] and the experts `chosen` [..., k]."""

    probabilities: Tensor
    chosen: Tensor


class Router(AdapterPart):
    """A part that chooses experts, with a matrix [N, d] without bias.

    `balance` is the weight of the balance loss. `mask` is the name of the forward's argument that marks padding. The
    statistics are not saved with the adapter.
    """

    assigned: Tensor
    balance_sum: Tensor

    def __init__(self, experts: int, hidden_size: int, top_k: int, balance: float, mask: str) -> None:
        super().__init__()
        self.router = nn.Parameter(ROUTER_STD * torch.randn(experts, hidden_size, dtype=torch.float32))
        self.top_k, self.balance, self.mask = top_k, balance, mask
        self.passes = 0
        self.register_buffer("assigned", torch.zeros(experts, dtype=torch.long), persistent=False)
        self.register_buffer("balance_sum", torch.zeros(()), persistent=False)

    def why_all_tokens(self) -> str | None:
        return "the balance loss of its experts reads all tokens" if self.balance else None

    def choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """For tokens [..., d]: the shares of their k experts, and the experts' numbers, both [n, k].

        Shares are the k largest probabilities, divided by their sum.
        """
        tokens = hidden.reshape(-1, hidden.shape[-1])
        logits = functional.linear(tokens.to(self.router.dtype), self.router)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        shares, chosen = probabilities.topk(self.top_k, dim=-1)
        if _PASSES.running and _PASSES.running[-1].noting:
            place = hidden.shape[:-1]
            _PASSES.running[-1].routings[self] = Routing(probabilities.view(*place, -1), chosen.view(*place, -1))
        return shares / shares.sum(-1, keepdim=True), chosen


@dataclass(frozen=True)
class _Pass:
    """A pass of `model` that runs now. `noting`: it is one in training, so its routers note what they choose."""

    model: nn.Module
    noting: bool
    routings: dict[Router, Routing] = field(default_factory=dict)


class _Passes(PerThread):
    """The passes that run in this thread, the innermost one last. Several only where a model calls another one."""

    def __init__(self) -> None:
        self.running: list[_Pass] = []


_PASSES = _Passes()
_STATISTICS = Lock()
"""For the statistics, which all threads add to."""


def balance_loss(routing: Routing, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """N sum_i f_i P_i, and how many tokens each expert got [N]. Where `counted` is 0, a token does not count."""
    probabilities, chosen = routing.probabilities, routing.chosen
    experts = probabilities.shape[-1]
    of_token = functional.one_hot(chosen, experts).sum(-2)
    weights = torch.ones_like(probabilities[..., 0]) if counted is None else counted.to(probabilities)
    assigned = (of_token * weights[..., None]).reshape(-1, experts).sum(0)
    mean = (probabilities * weights[..., None]).reshape(-1, experts).sum(0) / weights.sum().clamp(min=1)
    return experts * (assigned / assigned.sum().clamp(min=1) * mean).sum(), assigned


def watch_routers(model: nn.Module) -> None:
    """From now on, add the balance loss of the routers in `model` to the `loss` that it returns in training.

    It is the mean of balance * N sum_i f_i P_i over the blocks whose router trains. The output's `balance_loss` has it
    too, for a loop that computes its own loss. With `num_items_in_batch`, it is multiplied by the batch's share of the
    step's labels. The hooks are removed at the first pass in training without routers. A model that is watched already
    stays as it is.
    """
    if _begin not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_begin)
        model.register_forward_hook(_finish, with_kwargs=True, always_call=True)


def router_statistics(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Statistics of each active mixture, by its path, over the training passes so far.

    `shares` is each expert's share of all assignments, `balance_loss` the mean of N sum_i f_i P_i over the passes.
    Empty before the first training pass.
    """
    return {
        without_adapters(path): {
            "shares": (part.assigned / part.assigned.sum()).tolist(),
            "balance_loss": float(part.balance_sum) / part.passes,
        }
        for path, layer in model.named_modules()
        if isinstance(layer, HybridLayer)
        for part in layer._running()
        if isinstance(part, Router) and part.passes
    }


def mixtures(model: nn.Module) -> list[Router]:
    """The routers in `model`, in its order."""
    return [module for module in model.modules() if isinstance(module, Router)]


def _begin(model: nn.Module, _inputs: Any) -> None:
    # Routers note their choices until `_finish`, so what backward recomputes is not noted.
    _PASSES.running.append(_Pass(model, noting=model.training))


def _finish(model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    if not _PASSES.running or _PASSES.running[-1].model is not model:
        return
    current = _PASSES.running.pop()
    routings = current.routings
    if output is None:  # the pass raised an error
        return
    if not routings:
        if current.noting:
            _stop_watching(model)
        return
    inputs = arguments(model, args, kwargs)
    losses = []
    for part, routing in routings.items():
        loss = _note(part, routing, inputs.get(part.mask))
        if part.router.requires_grad:
            losses.append(part.balance * loss)
    if losses:
        balance = torch.stack([loss.to(losses[-1].device) for loss in losses]).mean()
        add_to_loss(balance, model, inputs, output)
        if not isinstance(output, tuple):
            output.balance_loss = balance


def _stop_watching(model: nn.Module) -> None:
    """Remove the hooks where no router is left. Adapters that are only switched off stay."""
    if mixtures(model):
        return
    for hooks, own in ((model._forward_pre_hooks, _begin), (model._forward_hooks, _finish)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            for kept in (hooks, model._forward_hooks_with_kwargs, model._forward_hooks_always_called):
                kept.pop(key, None)


def _note(part: Router, routing: Routing, mask: Any) -> Tensor:
    """The balance loss of one pass. It is added to the statistics too."""
    if torch.is_grad_enabled() and part.router.requires_grad and not routing.probabilities.requires_grad:
        raise FrostlineError(
            "mixture: with reentrant activation checkpointing the balance loss has no gradient: use use_reentrant=False"
        )
    fits = isinstance(mask, Tensor) and mask.shape == routing.chosen.shape[:-1]
    loss, assigned = balance_loss(routing, mask.to(routing.chosen.device) if fits else None)
    with _STATISTICS:
        part.assigned += assigned.to(part.assigned)
        part.balance_sum += loss.detach().to(part.balance_sum.device)
        part.passes += 1
    return loss
