"""The attentions of a block: which matrices compute queries, keys and values, and how wide these are.

Widths are numbers per token, all heads together:
    q   of queries and of keys as they are multiplied      k, v   of keys and values as they are computed,
    a   of attention's output                                     before grouped heads repeat them
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from frostline.anatomy._model import Block, Linear, Role


@dataclass(frozen=True)
class Attention:
    """One attention of a block.

    Attributes:
        inputs: the matrices that compute queries, keys and values.
        output: the matrix that mixes the heads.
        cross: whether keys and values come from the encoder.
        q, k, v: widths, as above.
        fused: output width of a matrix that computes queries, keys and values together; 0 without one.
    """

    inputs: tuple[Linear, ...]
    output: Linear
    cross: bool
    q: int
    k: int
    v: int
    fused: int

    @property
    def a(self) -> int:
        return self.output.in_features


def attentions(block: Block, crossing: bool = False) -> tuple[Attention, ...]:
    """The attentions of a block, in order. With `crossing`, all but the first take keys and values from an encoder."""
    linears = [
        linear
        for linear in block.linears
        # DeBERTa's matrices for relative positions multiply a table, not the tokens.
        if linear.role is Role.ATTENTION and not linear.name.rpartition(".")[2].startswith("pos_")
    ]
    groups = [tuple(group) for _, group in groupby(linears, key=_attention_path)]
    return tuple(
        _attention(group, cross=crossing and position > 0) for position, group in enumerate(groups) if len(group) > 1
    )


def _attention_path(linear: Linear) -> str:
    found = re.match(r".*?\b\w*att\w*", linear.name, re.IGNORECASE)
    return found.group() if found else linear.name.rpartition(".")[0]


def _attention(linears: Sequence[Linear], cross: bool) -> Attention:
    output = next((linear for linear in reversed(linears) if not sides(linear)), linears[-1])
    inputs = tuple(linear for linear in linears if linear is not output)
    a = output.in_features
    made = {sides(linear): linear.out_features for linear in inputs}
    fused = made.get("qkv", made.get("", 0))
    q = made.get("q", a)
    return Attention(
        inputs=inputs,
        output=output,
        cross=cross,
        q=q,
        k=made.get("k", (fused - q) // 2 if fused else q),
        v=made.get("v", (fused - q) // 2 if fused else a),
        fused=fused,
    )


def sides(linear: Linear) -> str:
    """Which of queries, keys and values a matrix computes, read from its name: some letters of "qkv", or "" for none.

    >>> [sides(Linear(name, "", 8, 8, Part.BLOCK, 0, None)) for name in ("h.0.q_proj", "h.0.kv_b", "h.0.o")]
    ['q', 'kv', '']
    """
    leaf = linear.name.rpartition(".")[2].lower()
    if "qkv" in leaf or "query_key_value" in leaf:
        return "qkv"
    if leaf.startswith("kv"):
        return "kv"
    return leaf[0] if leaf[0] in "qkv" else ""
