"""A prefix: learned keys and values that every token attends to. A gate decides how strongly (methods.md 4).

    B rows, Q queries, T keys, l prefix tokens, H query heads, G key heads (each serves H / G query heads),
    h width of a key's head, v width of a value's head, d hidden width

Without a gate, the prefix's keys and values are put before those of the text, and the model's attention does the rest.

A gate g is one number per query. The prefix's keys are then different for each query (g k), but fused attention
functions take one set for all. The one-hot trick makes it one set again. Each vector gets l more numbers:

    query        [ q, s ]      s = the query's l scores of the prefix, computed here, with the gate already in them
    text key     [ k, 0 ]      q k + s 0  = q k: the text's scores stay as they were
    prefix key i [ 0, e_i ]    q 0 + s e_i = s_i, with e_i = (0, ..., 1, ..., 0), a 1 at place i
    text value   [ v, 0 ]      the first v numbers of the output are the text's part of it
    prefix value [ 0, e_i ]    the last l numbers of the output are the attention weights of the l prefix tokens

So the model's own attention function makes one softmax over prefix and text, with its own mask, soft cap and sinks.
Afterwards the prefix's values, times those weights, are added to the text's part.
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
        yield _attention(model, block), PrefixPart(*_widths(block), anatomy.hidden_size, self.mode)


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
        scores = None if self.gate is None else partial(self._add_scores, self.gate(hidden))
        # The scores need all queries with their gates, so their hook is the outermost one. Other hooks may then keep
        # some queries only, or go through a packed batch row by row. Each of their calls needs the prefix's keys, so
        # the hook that adds them is the innermost one.
        return attention_call(run, module, args, kwargs, innermost=self._add_keys, outermost=scores)

    def _add_scores(
        self, logits: Tensor, attend: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **options: Any
    ) -> Any:
        """Give each query its scores of the prefix, and add the prefix's values to the output.

        `logits` [B, Q, 1] are the gate's, `query` is [B, H, Q, h] and `key` [B, G, T, h].
        """
        assert self.gate is not None
        rows, heads, queries, _ = query.shape
        groups, length = key.shape[1], len(self.keys)
        width = self.keys.shape[1] // groups
        if options.get("scaling") is None:
            # The default is 1 / sqrt(width of the query), and the query is about to become wider than h.
            options["scaling"] = width**-0.5
        gate = torch.sigmoid(logits).to(query.dtype)
        # The scores of the prefix: q k for each query and prefix key. The attention function multiplies them by the
        # scaling, as it does with the text's, so they are not scaled here. A second adapter's prefix may have made the
        # query wider already: only the first h numbers are the query itself.
        grouped = query[..., :width].reshape(rows, groups, heads // groups, queries, width)
        # [B, G, H / G, Q, h] times [1, G, 1, h, l]: all query heads of a group share one key head.
        scores = grouped @ self._heads(self.keys, key).unsqueeze(2).transpose(-1, -2)
        scores = scores.reshape(rows, heads, queries, length)
        if self.on_output:
            # The gate multiplies the prefix's weight before the softmax divides by the sum: g exp(s) = exp(s + log g).
            # Divided by the scaling, because the attention function multiplies by it.
            closing = functional.logsigmoid(logits.float()).clamp(min=_CLOSED)[:, None] / options["scaling"]
            scores = scores + closing.to(scores.dtype)
        else:
            # The gate multiplies the keys (here) and the values (below): q (g k) = g (q k). gate[:, None] is
            # [B, 1, Q, 1]: one gate for all heads of a query.
            scores = scores * gate[:, None]
        output, weights = attend(module, torch.cat([query, scores], dim=-1), key, *args, **options)
        # [B, Q, H, v + l]: the last l numbers are the weights of the prefix tokens, by the one-hot values.
        output, shares = output[..., :-length], output[..., -length:]
        shares = shares.reshape(rows, queries, groups, heads // groups, length)
        values = self.values.view(length, groups, -1).transpose(0, 1).to(output.dtype)
        # The sum over prefix tokens of weight times value. r counts the query heads of a group, H / G.
        prefix = torch.einsum("bqgrl,glv->bqgrv", shares, values).flatten(2, 3)
        if not self.on_output:
            prefix = prefix * gate[..., None]
        # The output is wider than v where another adapter has a prefix too: its weights come after the head's v
        # numbers, and that adapter's own call uses them. Zeros leave them as they are.
        return output + functional.pad(prefix, (0, output.shape[-1] - prefix.shape[-1])), weights

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
        """Put the prefix's keys and values before those of the text: as they are, or one-hot where there is a gate."""
        if self.gate is None:
            key, value = (
                torch.cat([self._heads(prefix, states).expand(len(states), -1, -1, -1), states], dim=2)
                for prefix, states in ((self.keys, key), (self.values, value))
            )
        else:
            key, value = self._marked(key), self._marked(value)
        mask, options = self._seen(module, query, key, attention_mask, options)
        output, weights = attend(module, query, key, value, mask, **options)
        # The caller knows nothing of the prefix: it gets the weights of the text's T keys.
        return output, None if weights is None else weights[..., len(self.keys) :]

    def _heads(self, prefix: Tensor, like: Tensor) -> Tensor:
        """[l, G h] to [1, G, l, h], with zeros up to the width of `like`, the keys or values [B, G, T, h or more].

        They are wider than h where another adapter's prefix has a gate and so made them longer.
        """
        heads = prefix.view(len(prefix), like.shape[1], -1).transpose(0, 1)[None].to(like.dtype)
        return functional.pad(heads, (0, like.shape[-1] - heads.shape[-1]))

    def _marked(self, states: Tensor) -> Tensor:
        """Keys or values [B, G, T, h] to [B, G, l + T, h + l]: [0, e_i] for the prefix, then [k, 0] for the text."""
        rows, groups, _, width = states.shape
        length = len(self.keys)
        # Row i of the identity matrix is e_i. h zeros go before it; l zeros go behind each key of the text.
        mark = functional.pad(torch.eye(length, dtype=states.dtype, device=states.device), (width, 0))
        return torch.cat([mark.expand(rows, groups, -1, -1), functional.pad(states, (0, length))], dim=2)

    def _seen(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The mask and the position bias with l more columns on the left. Every query sees the prefix.

        `query` is [B, H, Q, ...], `key` [B, G, l + T, ...] with the prefix, `mask` [B, 1, Q, T] or None.
        """
        length, queries, total = len(self.keys), query.shape[2], key.shape[2]
        if options.get("position_bias") is not None:
            # A prefix has no positions: 0 is added to its scores.
            options = {**options, "position_bias": functional.pad(options["position_bias"], (length, 0))}
        if isinstance(mask, Tensor):
            # "Seen" is True in a boolean mask, and 0 in one that is added to the scores.
            return functional.pad(mask, (length, 0), value=mask.dtype == torch.bool), options
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if causal and queries > 1 and attention_implementation(module) == "sdpa":
            # Without a mask, sdpa lets query i see keys 0 ... i. With the prefix in front, these would be the prefix
            # and the first i - l tokens. So the causal mask over the text is written out, and the prefix is seen.
            ones = torch.ones(queries, total - length, dtype=torch.bool, device=query.device)
            return functional.pad(ones.tril(), (length, 0), value=True)[None, None], options
        return mask, options

    def why_not_merged(self) -> str | None:
        return "an ordinary model cannot hold a prefix"


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


def _attention(model: nn.Module, block: Block) -> str:
    """The path of the block's self-attention. Raises `UnsupportedModel` when it cannot have a prefix."""
    for name, module in model.named_modules():
        path = without_adapters(name)
        if path.startswith(f"{block.name}.") and hookable(module):
            _check_attention(module)
            return path
    raise UnsupportedModel(
        f"block {block.index}: prefix: the attention of {type(model).__name__} is not one of transformers' registered "
        "functions, which a prefix needs: use lora or a parallel adapter"
    )
