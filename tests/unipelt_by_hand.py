"""UniPELT's forward pass written out for Llama and BERT, over a model's own tensors (methods.md 10).

B rows, T tokens, d hidden width, H heads, h head width, l prefix tokens
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def part(layer: Any) -> Any:
    """What the adapter has put around a module."""
    return layer.hybrid_parts["default"]


def gate(linear: Any, states: Tensor, real: Tensor | None) -> Tensor:
    """[B, T, 1]: for each token, or its average over the tokens of a row that are `real`."""
    found = torch.sigmoid(states @ linear.weight[0] + linear.bias)
    if real is not None:
        rows = [row[keep].mean().expand(len(row)) for row, keep in zip(found, real.bool(), strict=True)]
        found = torch.stack(rows)
    return found[..., None]


def updated(layer: Any, states: Tensor, gate: Tensor) -> Tensor:
    """W x + g (alpha / r) B A x."""
    own, base = part(layer), layer.base_layer
    return functional.linear(states, base.weight, base.bias) + gate * own.scale * (states @ own.A.T @ own.B.T)


def attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, mask: Tensor) -> Tensor:
    """[B, H, T, h] each, key and value with as many heads as the query; `mask` [B, 1, T, T] is added to the scores."""
    rows, heads, length, width = query.shape
    own = part(layer)
    groups = own.keys.shape[1] // width

    def heads_of(prefix: Tensor) -> Tensor:
        return prefix.view(-1, groups, width).transpose(0, 1).repeat_interleave(heads // groups, 0)[None]

    gate = gate[:, None]  # [B, 1, T, 1]
    text = query @ key.transpose(2, 3) * width**-0.5 + mask
    prefix = query @ heads_of(own.keys).transpose(2, 3) * gate * width**-0.5  # q (g P_k)
    shares = torch.softmax(torch.cat([prefix, text], dim=-1), dim=-1)
    count = own.keys.shape[0]
    output = shares[..., :count] * gate @ heads_of(own.values) + shares[..., count:] @ value
    return output.transpose(1, 2).reshape(rows, length, -1)


def adapted(layer: Any, inner: Tensor, gate: Tensor) -> Tensor:
    """y + g Up(relu(Down(y))), with y the feed-forward's output."""
    own, base = part(layer), layer.base_layer
    y = functional.linear(inner, base.weight, base.bias)
    within = torch.relu(functional.linear(y, own.down.weight, own.down.bias))
    return y + gate * functional.linear(within, own.up.weight, own.up.bias)


def split(states: Tensor, heads: int, repeats: int = 1) -> Tensor:
    rows, length, width = states.shape
    return states.view(rows, length, heads, width // heads).transpose(1, 2).repeat_interleave(repeats, 1)


def closed(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def llama_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    config, trunk = model.config, model.model
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    state, given = trunk.embed_tokens(batch["input_ids"]), batch["attention_mask"]
    length = state.shape[1]
    tables = trunk.rotary_emb(state, torch.arange(length)[None])
    mask = closed(torch.ones(length, length).tril().bool() & given[:, None, None, :].bool())
    for block in trunk.layers:
        x, around = block.input_layernorm(state), block.self_attn
        own, base = part(around), around.base_layer
        g_lora, g_prefix = gate(own.lora_gate, x, None), gate(own.gate, x, None)
        query, value = updated(base.q_proj, x, g_lora), updated(base.v_proj, x, g_lora)
        rotated = apply_rotary_pos_emb(split(query, heads), split(x @ base.k_proj.weight.T, groups), *tables)
        key = rotated[1].repeat_interleave(heads // groups, 1)
        found = attention(around, rotated[0], key, split(value, groups, heads // groups), g_prefix, mask)
        state = state + found @ base.o_proj.weight.T
        x, mlp = block.post_attention_layernorm(state), block.mlp
        entering = mlp.gate_proj
        inner = functional.silu(x @ entering.base_layer.weight.T) * (x @ mlp.up_proj.weight.T)
        state = state + adapted(mlp.down_proj, inner, gate(part(entering).gate, x, None))
    logits: Tensor = model.lm_head(trunk.norm(state))
    return logits


def bert_logits(model: Any, batch: dict[str, Tensor], averaged: bool = False) -> Tensor:
    trunk, heads, given = model.bert, model.config.num_attention_heads, batch["attention_mask"]
    state, real = trunk.embeddings(batch["input_ids"]), given if averaged else None
    mask = closed(given[:, None, None, :].bool().expand(-1, 1, given.shape[1], -1))
    for block in trunk.encoder.layer:
        around = block.attention.self
        own, base = part(around), around.base_layer
        g_lora, g_prefix = gate(own.lora_gate, state, real), gate(own.gate, state, real)
        query, value = updated(base.query, state, g_lora), updated(base.value, state, g_lora)
        found = attention(around, *(split(x, heads) for x in (query, base.key(state), value)), g_prefix, mask)
        out = block.attention.output
        state = out.LayerNorm(out.dense(found) + state)
        entering = block.intermediate.dense
        inner = functional.gelu(functional.linear(state, entering.base_layer.weight, entering.base_layer.bias))
        found = adapted(block.output.dense, inner, gate(part(entering).gate, state, real))
        state = block.output.LayerNorm(found + state)
    logits: Tensor = model.classifier(trunk.pooler(state))
    return logits
