"""What a prefix makes of attention, in numbers per token that are kept for the backward pass.

Widths of all heads together, with l prefix tokens, h heads, u keys of the text, q and a as in `_activations`.

    without gate  keys and values of 1 + l / u times the length
    with a gate   one more key in place of the l, with which queries, keys, values and output are longer by 1 number for
                  each head; a copy of the queries, q; the prefix's keys (if queries carry a gradient) and values once
                  for each row; the scores, h l, where the gate multiplies keys and values; their softmax, 2 h l in
                  float32; the weights of the prefix tokens, h l; what the gate reads, d. With dropout or a soft cap
                  there are l more keys and l more numbers instead, and no softmax beside
    masked        where one key is added in a causal model, attention gets no mask: one more query goes before the
                  text's, and a group's keys and values are there once. Otherwise a causal mask for fused attention,
                  1 + l / u of one row: shared by the rows of a batch that has no padding, as is assumed. Keys and
                  values are then there once for each query head
"""

from __future__ import annotations

from dataclasses import dataclass

from frostline.cost._flow import AttentionFlow
from frostline.cost._workload import FLOAT

_OF_THE_GATE = 4
"""What its sigmoid and its products keep."""


@dataclass(frozen=True)
class Longer:
    """Numbers for each token of an attention, of which there are `keys` in a row, with a prefix or without.

    Attributes:
        flow: the attention.
        keys: how many tokens of the text a token attends.
        separate: the tokens of a gated prefix have keys of their own, because of dropout or a soft cap.
        masked: attention gets a mask.
    """

    flow: AttentionFlow
    keys: int
    separate: bool
    masked: bool

    @property
    def added(self) -> int:
        """How many keys the prefix adds."""
        return self.flow.added_keys(self.separate)

    @property
    def marks(self) -> int:
        """How many numbers it adds to a token's query, all heads together."""
        return self.flow.marks(self.separate)

    @property
    def ahead(self) -> float:
        """How many times as many queries and outputs there are."""
        return 1.0 if self.masked else 1 + self.added / self.keys

    @property
    def key_numbers(self) -> float:
        return self._of_heads(self.flow.attention.k, self.flow.attention.q)

    @property
    def value_numbers(self) -> float:
        return self._of_heads(self.flow.attention.v, self.flow.attention.a)

    def _of_heads(self, own: int, repeated: int) -> float:
        groups = 1.0 if self.masked else own / repeated
        return (1 + self.added / self.keys) * groups * (repeated + self.marks)

    def beside(self, c: int) -> float:
        """Bytes that a gated prefix keeps beside these, with c bytes for a number of what attention computes with."""
        flow, attention = self.flow, self.flow.attention
        if not flow.gated:
            return 0.0
        tokens, by_gate = flow.heads * flow.length, flow.prefix is not None and flow.prefix.gate == "prefix"
        total = float(c) * (attention.q + tokens * (1 + by_gate) + self.marks * by_gate)
        total += c * flow.length * (attention.k * ("q" in flow.made) + attention.v) / self.keys
        if not self.separate:
            total += 2 * FLOAT * tokens + c * (self.marks + tokens * (c != FLOAT))
        return total


def of_its_gate(flow: AttentionFlow, hidden: int) -> int:
    """What the gate keeps, which computes in float32 or under autocast."""
    return flow.gated * (hidden + _OF_THE_GATE)
