"""A feed-forward as a mixture of LoRA experts over its frozen weights (MixLoRA; methods.md 5).

    n tokens, N experts, k of them for each token, r rank, d hidden width, in and out a matrix's widths

The feed-forward runs once, on n k rows sorted by expert. Its frozen matrices multiply all rows together. Each expert's
A and B multiply that expert's rows only. A matrix that reads the feed-forward's input multiplies every token once
instead of k times.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapters._added import Added, Branch
from frostline.adapters._kind import AdapterKind, LossTerm
from frostline.adapters._layer import AdapterPart, Run, submodule
from frostline.adapters._lora import LoraKind
from frostline.adapters._routers import Router, watch_routers
from frostline.anatomy import Anatomy, Block, Linear, Role
from frostline.core.errors import PlanError, UnsupportedModel
from frostline.plan import Lora, Mixture


class MixtureKind(AdapterKind[Mixture]):
    """A router around the feed-forward, experts around its matrices, and LoRA on the attention's matrices."""

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        mode, (_, linears) = self.mode, _feed_forward(block)
        experts = {linear.name: self._experts(linear, anatomy.hidden_size) for linear in linears}
        lora = self._lora.added(block, anatomy) if mode.attention else Added()
        shapes = ((mode.experts, anatomy.hidden_size), *(s for each in experts.values() for s in each.shapes))
        return Added((*shapes, *lora.shapes), {**experts, **lora.branches})

    def _experts(self, linear: Linear, hidden: int) -> Branch:
        mode, sizes = self.mode, (linear.in_features, self.mode.r, linear.out_features)
        # A matrix that reads the hidden states runs once for each token, whatever its experts.
        rows = 1 if linear.in_features == hidden else mode.top_k
        drops = mode.dropout > 0
        return Branch(*sizes, mode.r, drops=drops, rows=mode.top_k, matrix_rows=rows, experts=mode.experts)

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, AdapterPart]]:
        mode = self.mode
        if mode.attention:
            yield from self._lora.parts(model, block, anatomy)
        path, linears = _feed_forward(block)
        parameters = inspect.signature(submodule(model, path).forward).parameters.values()
        if sum(parameter.default is parameter.empty for parameter in parameters) > 1:
            raise UnsupportedModel(
                f"block {block.index}: mixture: {path} reads more than hidden states, so it cannot run on some tokens "
                "only: use lora or a parallel adapter"
            )
        of_decoder = anatomy.encoder_decoder and block.stack == "decoder"
        yield path, MixturePart(anatomy.hidden_size, mode, "decoder_attention_mask" if of_decoder else "attention_mask")
        for linear in linears:
            yield linear.name, ExpertsPart(linear.in_features, linear.out_features, mode)

    @property
    def _lora(self) -> LoraKind:
        """The LoRA on the attention's matrices."""
        mode = self.mode
        return LoraKind(Lora(r=mode.r, alpha=mode.alpha, dropout=mode.dropout, targets="attention"))

    @classmethod
    def watch(cls, model: nn.Module) -> None:
        watch_routers(model)

    @property
    def loss_term(self) -> LossTerm | None:
        return LossTerm("its balance loss", "use balance: 0") if self.mode.balance else None


@dataclass(frozen=True)
class Dispatch:
    """Which rows belong to which expert, during one call of the feed-forward.

    Attributes:
        rows: [1, n k, d], sorted by expert.
        tokens: [1, n, d].
        token_of: [n k], the token of each row.
        counts: how many rows each expert has.
    """

    rows: Tensor
    tokens: Tensor
    token_of: Tensor
    counts: list[int]


_AT_WORK: ContextVar[Dispatch | None] = ContextVar("at_work", default=None)


class MixturePart(Router):
    """Around a feed-forward: the sum over a token's k experts of share * feed-forward with the expert's updates."""

    def __init__(self, hidden_size: int, options: Mixture, mask: str) -> None:
        super().__init__(options.experts, hidden_size, options.top_k, options.balance, mask)

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """[..., d] to [..., d]."""
        if isinstance(run, partial) and isinstance(run.func, MixturePart):
            raise PlanError(
                "mixture: two active adapters share one feed-forward: use set_adapter to keep only one active"
            )
        (hidden,) = (*args, *kwargs.values())
        shares, chosen = self.choose(hidden)
        by_expert = chosen.flatten().argsort(stable=True)
        token_of = by_expert // self.top_k
        counts = chosen.flatten().bincount(minlength=len(self.router)).tolist()
        tokens = hidden.reshape(1, -1, hidden.shape[-1])
        with _at_work(Dispatch(tokens[:, token_of], tokens, token_of, counts)) as dispatch:
            outputs: Tensor = run(dispatch.rows)
        of_token = outputs[0, by_expert.argsort()].view(*chosen.shape, -1)
        mixed: Tensor = (shares.to(outputs.dtype)[..., None] * of_token).sum(1)
        return mixed.view(*hidden.shape[:-1], -1)

    def why_not_merged(self) -> str | None:
        return "the choice of experts depends on the input"


class ExpertsPart(AdapterPart):
    """Around a matrix of the feed-forward: W x + (alpha / r) B_e A_e x, where x is a row of expert e.

    A is [N, r, in]. B is [N, out, r] and starts at 0.
    """

    def __init__(self, in_features: int, out_features: int, options: Mixture) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(options.experts, options.r, in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(options.experts, out_features, options.r, dtype=torch.float32))
        nn.init.uniform_(
            self.A, -1 / math.sqrt(in_features), 1 / math.sqrt(in_features)
        )  # the range that LoRA uses for A
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.scale = options.alpha / options.r

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """[1, n k, in] to [1, n k, out]."""
        dispatch = _AT_WORK.get()
        if dispatch is None:
            raise UnsupportedModel(
                "mixture: the model uses a matrix of the feed-forward without the feed-forward: use lora for this model"
            )
        inputs: Tensor = args[0]
        output: Tensor = run(dispatch.tokens)[:, dispatch.token_of] if inputs is dispatch.rows else run(inputs)
        rows = self.dropout(inputs.to(self.A.dtype)).split(dispatch.counts, dim=1)
        updates = [
            functional.linear(functional.linear(own, a), b)
            for own, a, b in zip(rows, self.A.unbind(), self.B.unbind(), strict=True)
        ]
        return output + (self.scale * torch.cat(updates, dim=1)).to(output.dtype)


@contextmanager
def _at_work(dispatch: Dispatch) -> Iterator[Dispatch]:
    token = _AT_WORK.set(dispatch)
    try:
        yield dispatch
    finally:
        _AT_WORK.reset(token)


def _feed_forward(block: Block) -> tuple[str, list[Linear]]:
    """The path of the block's feed-forward module, and its matrices.

    Raises `UnsupportedModel` when no module of the block holds just these, or they are experts already.
    """
    linears = [linear for linear in block.linears if linear.role is Role.FEED_FORWARD]
    if not linears:
        raise UnsupportedModel(
            f"block {block.index}: mixture: the block has no feed-forward matrices: use mode: frozen"
        )
    if any(linear.copies > 1 for linear in linears):
        raise UnsupportedModel(
            f"block {block.index}: mixture: the feed-forward has experts already: use lora with targets: attention"
        )
    path = linears[0].name.rpartition(".")[0]
    while not all(linear.name.startswith(f"{path}.") for linear in linears):
        path = path.rpartition(".")[0]
    within = [linear for linear in block.linears if linear.name.startswith(f"{path}.")]
    if path == block.name or len(within) > len(linears):
        names = ", ".join(linear.name.removeprefix(f"{block.name}.") for linear in linears)
        raise UnsupportedModel(
            f"block {block.index}: mixture: no module of the block holds only {names}, so the feed-forward cannot run "
            "by itself: use lora or a parallel adapter"
        )
    return path, linears
