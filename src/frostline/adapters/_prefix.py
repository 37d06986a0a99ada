"""Learned keys and values that every token attends to, as strongly as its gate says (methods.md 4).

    B rows, Q queries, T keys, l prefix tokens, H heads, G groups of key heads, h width of a key's head, v of a value's,
    d hidden width

A gate per query means prefix keys per query, which no fused attention takes. But it takes longer vectors: with the
prefix's scores as l more numbers of each query, and a one-hot vector of l more numbers for each prefix key (0 for the
text's), their product is the score; and with the same one-hot vector in the values, the output's last l numbers are
the share of attention that each prefix token got. So the model's own attention function makes one softmax over prefix
and text, with whatever mask, soft cap or sink it has, and the prefix's values are added by the shares.
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
from frostline.adapters._layer import Part, Run, without_adapters
from frostline.anatomy import Anatomy, Block, attentions, sides
from frostline.core.errors import UserError
from frostline.hooks import attention_call, attention_implementation, hidden_given, hookable, open_attention
from frostline.plan import Prefix

_WORKS_WITH = ("sdpa", "eager")
_CLOSED = -1e3
"""The score of a closed gate, in place of -infinity, which has no product with 0: its softmax is 0 in float32."""


class PrefixKind(AdapterKind[Prefix]):
    """Keys and values of learned tokens in a block's self-attention."""

    def added(self, block: Block, anatomy: Anatomy) -> Added:
        keys, values = _widths(block)
        gate: tuple[Shape, ...] = () if self.mode.gate == "none" else ((1, anatomy.hidden_size), (1,))
        return Added(((self.mode.length, keys), (self.mode.length, values), *gate), prefix=self.mode)

    def parts(self, model: nn.Module, block: Block, anatomy: Anatomy) -> Iterator[tuple[str, Part]]:
        yield _attention(model, block), PrefixPart(*_widths(block), anatomy.hidden_size, self.mode)


class PrefixPart(Part):
    """Keys and values of `length` tokens, [l, G h] and [l, G v], around an attention module."""

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
        """As the attention module, which takes hidden states [B, Q, d]."""
        _check_attention(module)
        hidden = hidden_given(args, kwargs)
        scores = None if self.gate is None else partial(self._add_scores, self.gate(hidden))
        # Between the two may be hooks that take part of the queries, or row by row of a packed batch.
        with attention_call(module, innermost=self._add_keys, outermost=scores):
            return run(*args, **kwargs)

    def _add_scores(
        self, logits: Tensor, attend: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **options: Any
    ) -> Any:
        """Each query with its scores of the prefix, [B, H, Q, h + l]. `logits` [B, Q, 1] of the gate."""
        assert self.gate is not None
        rows, heads, queries, _ = query.shape
        groups, length = key.shape[1], len(self.keys)
        width = self.keys.shape[1] // groups
        if options.get("scaling") is None:  # the default would count the added numbers
            options["scaling"] = width**-0.5
        gate = torch.sigmoid(logits).to(query.dtype)
        grouped = query[..., :width].reshape(rows, groups, heads // groups, queries, width)
        scores = grouped @ self._heads(self.keys, key).unsqueeze(2).transpose(-1, -2)
        scores = scores.reshape(rows, heads, queries, length)
        if self.on_output:
            closing = functional.logsigmoid(logits.float()).clamp(min=_CLOSED)[:, None] / options["scaling"]
            scores = scores + closing.to(scores.dtype)
        else:
            scores = scores * gate[:, None]
        output, weights = attend(module, torch.cat([query, scores], dim=-1), key, *args, **options)
        output, shares = output[..., :-length], output[..., -length:]
        shares = shares.reshape(rows, queries, groups, heads // groups, length)
        values = self.values.view(length, groups, -1).transpose(0, 1).to(output.dtype)
        prefix = torch.einsum("bqgrl,glv->bqgrv", shares, values).flatten(2, 3)
        if not self.on_output:
            prefix = prefix * gate[..., None]
        # Behind the width of a head come the shares of another adapter's prefix, which this has no part in.
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
        """The prefix's keys and values before those of the text; gated ones as their marks."""
        if self.gate is None:
            key, value = (
                torch.cat([self._heads(prefix, states).expand(len(states), -1, -1, -1), states], dim=2)
                for prefix, states in ((self.keys, key), (self.values, value))
            )
        else:
            key, value = self._marked(key), self._marked(value)
        mask, options = self._seen(module, query, key, attention_mask, options)
        output, weights = attend(module, query, key, value, mask, **options)
        return output, None if weights is None else weights[..., len(self.keys) :]

    def _heads(self, prefix: Tensor, like: Tensor) -> Tensor:
        """[l, G h] to [1, G, l, h], and zeros up to the width of keys or values [B, G, T, h or more]."""
        heads = prefix.view(len(prefix), like.shape[1], -1).transpose(0, 1)[None].to(like.dtype)
        return functional.pad(heads, (0, like.shape[-1] - heads.shape[-1]))

    def _marked(self, states: Tensor) -> Tensor:
        """Keys or values [B, G, T, h] to [B, G, l + T, h + l]: those of the prefix are 0 and its one-hot mark."""
        rows, groups, _, width = states.shape
        length = len(self.keys)
        mark = functional.pad(torch.eye(length, dtype=states.dtype, device=states.device), (width, 0))
        return torch.cat([mark.expand(rows, groups, -1, -1), functional.pad(states, (0, length))], dim=2)

    def _seen(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The mask and what is added to scores, with l columns more on the left, which every query sees."""
        length, queries, total = len(self.keys), query.shape[2], key.shape[2]
        if options.get("position_bias") is not None:
            options = {**options, "position_bias": functional.pad(options["position_bias"], (length, 0))}
        if isinstance(mask, Tensor):
            return functional.pad(mask, (length, 0), value=mask.dtype == torch.bool), options
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if causal and queries > 1 and attention_implementation(module) == "sdpa":
            # Without a mask sdpa would take the first of the keys, the prefix's, for the query's own past.
            ones = torch.ones(queries, total - length, dtype=torch.bool, device=query.device)
            return functional.pad(ones.tril(), (length, 0), value=True)[None, None], options
        return mask, options

    def why_not_merged(self) -> str | None:
        return "a prefix is no part of an ordinary model"


def _check_attention(module: nn.Module) -> None:
    """Raise `UserError` when the module's attention function is none that takes masks and vectors of any width."""
    name = attention_implementation(module)
    if name not in _WORKS_WITH:
        raise UserError(
            f"prefix: the model's attention is {name}: load it with attn_implementation={' or '.join(_WORKS_WITH)}"
        )


def _widths(block: Block) -> tuple[int, int]:
    """How many numbers a token's keys and values have in the block's self-attention.

    Raises `UserError` where keys are made from a latent vector.
    """
    found = attentions(block)
    if not found or any(sides(linear) == "kv" for linear in found[0].inputs):
        raise UserError(f"block {block.index}: prefix: its attention makes no keys and values of its own")
    return found[0].k, found[0].v


def _attention(model: nn.Module, block: Block) -> str:
    """The path of the block's self-attention. Raises `UserError` when a prefix cannot be put into it."""
    for name, module in model.named_modules():
        path = without_adapters(name)
        if path.startswith(f"{block.name}.") and hookable(module):
            _check_attention(module)
            return path
    raise UserError(
        f"block {block.index}: prefix: the attention of {type(model).__name__} is not one of transformers' registered "
        "functions, which a prefix needs: take lora or an adapter"
    )
