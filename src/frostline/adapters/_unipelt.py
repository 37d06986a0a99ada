"""UniPELT: LoRA, a prefix and a series adapter in one block, each with a gate of its own (methods.md 10).

    B rows, T tokens, d hidden width, r rank, l prefix tokens, b bottleneck

    queries, values  W x + g_L (alpha / r) B A x
    attention        over [g_P P_k; K], times [g_P P_v; V]
    feed-forward     y + g_A Up(relu(Down(y)))

Each gate is the sigmoid of a linear layer, one number for each token. g_L and g_P read what the attention reads, g_A
what the feed-forward reads. A gate belongs to the part around a module that reads these states. The parts that it
scales get its value while that module runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline.adapters._added import Added
from frostline.adapters._bottleneck import BottleneckKind, BottleneckPart
from frostline.adapters._gate import Gate
from frostline.adapters._kind import AdapterKind
from frostline.adapters._layer import AdapterPart, Run
from frostline.adapters._lora import LoraKind, LowRank
from frostline.adapters._losses import arguments
from frostline.adapters._prefix import PrefixKind, PrefixPart, place_of
from frostline.adapters._targets import adaptable, leading_out
from frostline.anatomy import Anatomy, Block, Linear, Role, attentions, sides
from frostline.core.errors import UnsupportedModel
from frostline.hooks import PerThread, hidden_given
from frostline.plan import Bottleneck, Lora, Prefix, Unipelt


class UnipeltKind(AdapterKind[Unipelt]):
    """The three adapters, around the attention, its matrices of queries and values, and the feed-forward's matrices."""

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        places = _Places.of(block)
        prefix = PrefixKind(self._prefix).added(block, anatomy)
        branches = {linear.name: LoraKind(self._lora).branch(linear) for linear in places.updated}
        # A x and its product with the gate, which is counted with the first matrix.
        first = places.updated[0].name
        branches = {n: replace(each, kept=2 * each.makes, gated=n == first) for n, each in branches.items()}
        adapter = BottleneckKind(self._adapter).branch(places.leaving)
        branches[places.leaving.name] = replace(adapter, kept=adapter.kept + adapter.out + 1, gated=True)
        shapes = tuple(shape for branch in branches.values() for shape in branch.shapes)
        return Added((*prefix.shapes, *shapes), branches, prefix=self._prefix)

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, AdapterPart]]:
        averaged = self.mode.gates == "sequence"
        if averaged and block.stack == "decoder":
            raise UnsupportedModel(
                f"block {block.index}: unipelt: the average of a gate over the sequence would show later tokens to "
                "earlier ones in a decoder: use gates: token"
            )
        places, gates = _Places.of(block), Gates(averaged)
        path, widths = place_of(model, block)
        yield path, GatedPrefix(*widths, anatomy.hidden_size, self._prefix, gates)
        for linear in places.updated:
            yield linear.name, GatedUpdate(linear, self._lora, gates)
        yield places.entering.name, FeedForwardGate(places.entering.in_features, gates)
        yield places.leaving.name, GatedBottleneck(places.leaving, self._adapter, gates)

    @property
    def _lora(self) -> Lora:
        return Lora(r=self.mode.r, alpha=self.mode.alpha, dropout=0.0)

    @property
    def _prefix(self) -> Prefix:
        return Prefix(length=self.mode.length, gate="prefix")

    @property
    def _adapter(self) -> Bottleneck:
        return Bottleneck(kind="series", bottleneck=self.mode.bottleneck, activation="relu", bias=True)


@dataclass(frozen=True)
class _Places:
    """The matrices of a block that carry something: LoRA, the gate of the adapter, and the adapter."""

    updated: Sequence[Linear]
    entering: Linear
    leaving: Linear

    @classmethod
    def of(cls, block: Block) -> _Places:
        """Raises `UnsupportedModel` when the block's attention or feed-forward has no such matrices."""
        able = adaptable(block)
        of_queries = [m for found in attentions(block)[:1] for m in found.inputs if set(sides(m) or "qkv") & set("qv")]
        feed_forward = [linear for linear in able if linear.role is Role.FEED_FORWARD]
        leaving = leading_out(feed_forward)
        entering = [linear for linear in feed_forward if linear not in leaving]
        for what, found in (("attention", of_queries), ("feed-forward", entering)):
            if not found or (what == "feed-forward" and len(leaving) > 1):
                raise UnsupportedModel(
                    f"block {block.index}: unipelt: it has no {what} of plain matrices: use lora or a parallel adapter"
                )
        return cls(of_queries, entering[0], leaving[0])


class Gates(PerThread):
    """The gates of one block in the pass that runs: each [B, T, 1], or [B, 1, 1] where they are `averaged`.

    Attributes:
        averaged: each gate is its average over the tokens of a row that are no padding.
        real: which tokens these are, [B, T]; None for all.
        lora: the gate of the two updates, while the attention runs.
        adapter: the gate of the adapter, while the feed-forward runs.
    """

    def __init__(self, averaged: bool) -> None:
        self.averaged = averaged
        self.real: Tensor | None = None
        self.lora: Tensor | None = None
        self.adapter: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Gates:
        return Gates(self.averaged)

    def __reduce__(self) -> Any:
        return Gates, (self.averaged,)

    def of(self, gate: nn.Module, tokens: Tensor) -> Tensor:
        """A gate for `tokens` [B, T, d]."""
        return self.average(torch.sigmoid(gate(tokens)))

    def average(self, gate: Tensor) -> Tensor:
        if not self.averaged:
            return gate
        if gate.dim() != 3:
            raise UnsupportedModel("unipelt: the model does not keep the rows of a batch apart: use gates: token")
        if self.real is None:
            return gate.mean(1, keepdim=True)
        real = self.real[..., None].to(gate)
        return (gate * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)

    @property
    def why_all_tokens(self) -> str | None:
        return "its gates are averages over the sequence" if self.averaged else None


class GatedPrefix(PrefixPart):
    """The prefix, and the gates that read the attention's input: its own and LoRA's."""

    def __init__(self, keys: int, values: int, hidden: int, options: Prefix, gates: Gates) -> None:
        super().__init__(keys, values, hidden, options)
        self.lora_gate = Gate(hidden)
        self.gates = gates

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the attention module. Hidden states are [B, T, d]."""
        gates = self.gates
        gates.real = _real_tokens(module, args, kwargs) if gates.averaged else None
        gates.lora = gates.of(self.lora_gate, hidden_given(args, kwargs))
        try:
            return super().forward(run, module, *args, **kwargs)
        finally:
            gates.lora = None

    def gate_of(self, hidden: Tensor) -> Tensor:
        return self.gates.average(super().gate_of(hidden))

    def why_all_tokens(self) -> str | None:
        return self.gates.why_all_tokens


class GatedUpdate(LowRank):
    """LoRA whose gate is that of its block."""

    def __init__(self, linear: Linear, options: Lora, gates: Gates) -> None:
        super().__init__(linear.in_features, linear.out_features, options)
        self.gates = gates

    def factor(self, inputs: Tensor) -> Tensor:
        return self.scale * _given(self.gates.lora, "attention")

    def why_not_merged(self) -> str | None:
        return "the gate of its LoRA depends on the input"


class FeedForwardGate(AdapterPart):
    """The adapter's gate, around the matrix that reads the feed-forward's input."""

    def __init__(self, width: int, gates: Gates) -> None:
        super().__init__()
        self.gate = Gate(width)
        self.gates = gates

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the matrix, which reads [B, T, d]."""
        self.gates.adapter = self.gates.of(self.gate, args[0])
        return run(*args, **kwargs)

    def why_all_tokens(self) -> str | None:
        return self.gates.why_all_tokens


class GatedBottleneck(BottleneckPart):
    """The adapter after the feed-forward, times its block's gate."""

    def __init__(self, linear: Linear, options: Bottleneck, gates: Gates) -> None:
        super().__init__(linear.in_features, linear.out_features, options)
        self.gates = gates

    def factor(self) -> Tensor:
        gate, self.gates.adapter = _given(self.gates.adapter, "feed-forward"), None
        return self.scale * gate


def _given(gate: Tensor | None, module: str) -> Tensor:
    if gate is None:
        raise UnsupportedModel(
            f"unipelt: the model uses a matrix of the {module} without the module that its gate reads: use lora"
        )
    return gate


def _real_tokens(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Which tokens are no padding, [B, T], by the mask that an encoder's attention is given; None for all of them.

    The mask is [B, 1, Q, T]: boolean, or added to the scores and 0 for what is seen. With a sliding window, no query
    sees all tokens, but each token sees itself.
    """
    mask = arguments(module, args, kwargs).get("attention_mask")
    if mask is None:
        return None
    seen: Tensor = mask if mask.dtype == torch.bool else mask == 0
    return seen[:, 0].any(1) if mask.dim() == 4 else seen
