"""A prefix: learned keys and values that every token attends to. A gate decides how strongly (methods.md 4).

    B rows, Q queries, T keys, l prefix tokens, H query heads, G key heads (each serves H / G query heads),
    h width of a key's head, v width of a value's head, d hidden width

Without a gate, the prefix's keys and values are put before those of the text, and the model's attention does the rest.

A gate g is one number per query. The prefix's keys are then different for each query (g k), but fused attention
functions take one set for all. So the prefix's part of the attention is computed here, and the text's part by the
model's own function. One softmax runs over both, because that function gets one more key, whose score is the
logarithm of the sum of exp(s_i) over the query's l scores of the prefix. It takes the share that all prefix tokens
have together. For this, each vector gets one more number:

    query       [ q, log sum_i exp(s_i) ]     s_i = q (g k_i), computed here
    text key    [ k, 0 ]    q k + 0 = q k: the text's scores stay as they were
    prefix key  [ 0, 1 ]    0 + log sum_i exp(s_i)
    text value  [ v, 0 ]    the first v numbers of the output are the text's part of it
    prefix value [ 0, 1 ]   the last number of the output is the prefix's share of the attention

Afterwards that share of the prefix's own part, the sum over i of softmax(s)_i (g v_i), is added to the text's. The
model's own mask, position bias and sinks work as before. A soft cap changes each score, and dropout drops each weight,
so with these the l prefix tokens need numbers and keys of their own: query [ q, s ], prefix key i [ 0, e_i ] and prefix
value i [ 0, e_i ], with e_i = (0, ..., 1, ..., 0), a 1 at place i. The last l numbers of the output are their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.adapters._added import Added, Shape
from frostline.adapters._gate import Gate
from frostline.adapters._kind import AdapterKind
from frostline.adapters._layer import AdapterPart, Run, without_adapters
from frostline.anatomy import Anatomy, Block, attentions, sides
from frostline.core.errors import UnsupportedModel
from frostline.hooks import attention_call, attention_implementation, hidden_given, hookable, open_attention
from frostline.plan import Prefix

_WORKS_WITH = ("sdpa", "eager")
_CLOSED = -1e3
"""The score of a closed gate. Its softmax is 0 in float32. Minus infinity times the 0 of a text key would be NaN."""


class PrefixKind(AdapterKind[Prefix]):
    """Keys and values of learned tokens in a block's self-attention."""

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        keys, values = _widths(block)
        gate: tuple[Shape, ...] = () if self.mode.gate == "none" else ((1, anatomy.hidden_size), (1,))
        return Added(((self.mode.length, keys), (self.mode.length, values), *gate), prefix=self.mode)

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, AdapterPart]]:
        path, widths = place_of(model, block)
        yield path, PrefixPart(*widths, anatomy.hidden_size, self.mode)


class PrefixPart(AdapterPart):
    """Keys [l, G h] and values [l, G v] of the prefix, around an attention module."""

    def __init__(self, keys: int, values: int, hidden: int, options: Prefix) -> None:
        super().__init__()
        self.keys = nn.Parameter(options.init_std * torch.randn(options.length, keys, dtype=torch.float32))
        self.values = nn.Parameter(options.init_std * torch.randn(options.length, values, dtype=torch.float32))
        self.gate = None if options.gate == "none" else Gate(hidden)
        self.on_output = options.gate == "output"

    def put_around(self, module: nn.Module) -> None:
        self._opened = open_attention(module)

    def taken_off(self) -> None:
        self._opened.remove()

    def forward(self, run: Run, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the attention module. Hidden states are [B, Q, d]."""
        _check_attention(module)
        # The gate reads the attention's input, so it is computed here, where the input is at hand. The other steps
        # need queries and keys as the attention function gets them (rotated, split in heads), so they are hooks.
        hidden = hidden_given(args, kwargs)
        scores = None if self.gate is None else partial(self._add_scores, self.gate_of(hidden))
        # The scores need all queries with their gates, so their hook is the outermost one. Other hooks may then keep
        # some queries only, or go through a packed batch row by row. Each of their calls needs the prefix's keys, so
        # the hook that adds them is the innermost one.
        return attention_call(run, module, args, kwargs, innermost=self._add_keys, outermost=scores)

    def gate_of(self, hidden: Tensor) -> Tensor:
        """The gate of each query, [B, Q, 1]; where it is `on_output`, its logarithm. As softmax, it is in float32."""
        assert self.gate is not None
        logits: Tensor = self.gate(hidden)
        logits = logits.to(torch.promote_types(hidden.dtype, torch.float32))
        return functional.logsigmoid(logits).clamp(min=_CLOSED) if self.on_output else torch.sigmoid(logits)

    def _add_scores(
        self, gate: Tensor, attend: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **options: Any
    ) -> Any:
        """Give each query its scores of the prefix, and add the prefix's part to the output.

        `gate` [B, Q, 1] is that of `gate_of`, `query` is [B, H, Q, h] and `key` [B, G, T, h].
        """
        rows, heads, queries, _ = query.shape
        groups, length = key.shape[1], len(self.keys)
        width = self.keys.shape[1] // groups
        scaling = options.get("scaling")
        if scaling is None:
            # The default is 1 / sqrt(width of the query), and the query is about to become wider than h.
            scaling = options["scaling"] = width**-0.5
        # The scores of the prefix: q k for each query and prefix key. A second adapter's prefix may have made the query
        # wider already: only the first h numbers are the query itself. All query heads of a group share one key head,
        # so they are its rows: [B, G, H / G Q, h] times [G, h, l].
        grouped = query[..., :width].reshape(rows, groups, heads // groups * queries, width)
        keys = self.keys.view(length, groups, width).permute(1, 2, 0).to(query.dtype)
        scores = (grouped @ keys).view(rows, heads, queries, length)
        gate = gate[:, None]  # [B, 1, Q, 1]: one for all heads of a query
        # On the output, it multiplies the prefix's weight before the softmax divides by the sum:
        # g exp(s) = exp(s + log g). Else it multiplies keys (here) and values (below): q (g k) = g (q k).
        scores = scaling * scores + gate if self.on_output else scores * (scaling * gate)
        marks, parts = scores, None
        if self._marks(module, options) == 1:
            # log sum exp(s) = s_i - log softmax(s)_i for any i.
            logs = scores.log_softmax(-1)
            marks, parts = scores[..., :1] - logs[..., :1], logs.exp().to(query.dtype)
        # The attention function multiplies by the scaling.
        query = torch.cat([query, (marks / scaling).to(query.dtype)], dim=-1)
        output, weights = attend(module, query, key, *args, **options)
        # [B, Q, H, v + 1]: the last number is the weight of the prefix. Or v + l, with that of each prefix token.
        output, shares = output.split([output.shape[-1] - marks.shape[-1], marks.shape[-1]], dim=-1)
        # A copy of a few numbers, so that autograd need not keep the whole output for them.
        shares = shares.transpose(1, 2).contiguous()
        if not self.on_output:
            shares = shares * gate.to(shares.dtype)
        if parts is not None:
            shares = shares * parts
        # [B, G, H / G Q, l] times [G, l, v]: the sum over prefix tokens of weight times value.
        values = self.values.view(length, groups, -1).transpose(0, 1).to(output.dtype)
        prefix = shares.reshape(rows, groups, -1, length) @ values
        prefix = prefix.view(rows, heads, queries, -1).transpose(1, 2)
        # The output is wider than v where another adapter has a prefix too: its weights come after the head's v
        # numbers, and that adapter's own call uses them. Zeros leave them as they are.
        if more := output.shape[-1] - prefix.shape[-1]:
            prefix = functional.pad(prefix, (0, more))
        return output + prefix, weights

    def _marks(self, module: nn.Module, options: dict[str, Any]) -> int:
        """How many keys of the attention function stand for a prefix with a gate: one, or one for each token."""
        drops = options.get("dropout", module.training)  # GPT-J's attention does not say
        return len(self.keys) if drops or options.get("softcap") is not None else 1

    def _add_keys(
        self,
        attend: Any,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        """Put the prefix's keys and values before those of the text: as they are, or marks where there is a gate."""
        if self.gate is None:
            more = len(self.keys)
            key, value = (
                torch.cat([self._heads(prefix, states).expand(len(states), -1, -1, -1), states], dim=2)
                for prefix, states in ((self.keys, key), (self.values, value))
            )
        else:
            more = self._marks(module, options)
            key, value = _marked(key, more), _marked(value, more)
        ahead = 0
        if isinstance(attention_mask, Tensor):
            # Every query sees the prefix. "Seen" is True in a boolean mask, and 0 in one that is added to the scores.
            attention_mask = functional.pad(attention_mask, (more, 0), value=attention_mask.dtype == torch.bool)
        elif attention_implementation(module) == "sdpa" and query.shape[2] > 1 and _causal(module, options):
            # Without a mask, sdpa lets query i see keys 0 ... i, and it has to see the prefix and the tokens 0 ... i.
            if more == 1:
                # With a query of zeros before it, it is number i + 1: sdpa's own causal order, the fastest, is right.
                ahead = 1
                query = functional.pad(query, (0, 0, ahead, 0))
            else:
                ones = torch.ones(query.shape[2], key.shape[2] - more, dtype=torch.bool, device=query.device)
                attention_mask = functional.pad(ones.tril(), (more, 0), value=True)[None, None]
        if options.get("position_bias") is not None:
            # A prefix has no positions: 0 is added to its scores.
            options["position_bias"] = functional.pad(options["position_bias"], (more, 0, ahead, 0))
        output, weights = attend(module, query, key, value, attention_mask, **options)
        # The caller knows nothing of the prefix: it gets the weights of the text's T keys.
        return output[:, ahead:], None if weights is None else weights[..., more:]

    def _heads(self, prefix: Tensor, like: Tensor) -> Tensor:
        """[l, G h] to [1, G, l, h], with zeros up to the width of `like`, the keys or values [B, G, T, h or more].

        They are wider than h where another adapter's prefix has a gate and so made them longer.
        """
        heads = prefix.view(len(prefix), like.shape[1], -1).transpose(0, 1)[None].to(like.dtype)
        return functional.pad(heads, (0, like.shape[-1] - heads.shape[-1]))

    def why_not_merged(self) -> str | None:
        return "an ordinary model cannot hold a prefix"


def _marked(states: Tensor, marks: int) -> Tensor:
    """Keys or values [B, G, T, h] to [B, G, n + T, h + n]: [0, e_i] for n marks, then [k, 0] for the text."""
    marked = functional.pad(states, (0, marks, marks, 0))
    with torch.no_grad():  # constants: one copy of the states instead of two
        marked[:, :, :marks, states.shape[-1] :].diagonal(dim1=-2, dim2=-1).fill_(1)
    return marked


def _causal(module: nn.Module, options: dict[str, Any]) -> bool:
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _check_attention(module: nn.Module) -> None:
    """Raise `UnsupportedModel` unless the attention function accepts any mask, and vectors of any width."""
    name = attention_implementation(module)
    if name not in _WORKS_WITH:
        raise UnsupportedModel(
            f"prefix: the model's attention is {name}: load the model with attn_implementation="
            f"{' or '.join(_WORKS_WITH)}"
        )


def _widths(block: Block) -> tuple[int, int]:
    """How many numbers a token's keys and values have in the block's self-attention.

    Raises `UnsupportedModel` where they are computed from a latent vector.
    """
    found = attentions(block)
    if not found or any(sides(linear) == "kv" for linear in found[0].inputs):
        raise UnsupportedModel(
            f"block {block.index}: prefix: the attention computes keys and values from a latent vector: use lora or a "
            "parallel adapter"
        )
    return found[0].k, found[0].v


def place_of(model: nn.Module, block: Block) -> tuple[str, tuple[int, int]]:
    """The path of the block's self-attention, and the widths of a token's keys and values in it.

    Raises `UnsupportedModel` when it cannot have a prefix.
    """
    widths = _widths(block)
    for name, module in model.named_modules():
        path = without_adapters(name)
        if path.startswith(f"{block.name}.") and hookable(module):
            _check_attention(module)
            return path, widths
    raise UnsupportedModel(
        f"block {block.index}: prefix: the attention of {type(model).__name__} is not one of transformers' registered "
        "functions, which a prefix needs: use lora or a parallel adapter"
    )
