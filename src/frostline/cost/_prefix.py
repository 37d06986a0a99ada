"""What a prefix makes of attention, in numbers per token that are kept for the backward pass.

Widths of all heads together, with l prefix tokens, h heads, u keys of the text, q and a as in `_activations`.

    without gate  keys and values of 1 + l / u times the length, those of a group once for each of its query heads
    with a gate   queries, keys, values and output longer by h l numbers too; a copy of the queries, q; the prefix's
                  keys once for each row, q l / u, if queries carry a gradient; the output once more, a + h l, from
                  which the shares are read, or the shares alone where heads are grouped; the scores, h l, and what is
                  added, a, where the gate multiplies keys and values; what the gate reads, d
    masked        a causal mask for fused attention, 1 + l / u of one row: shared by the rows of a batch that has
                  no padding, as is assumed
"""

from __future__ import annotations

from frostline.cost._flow import AttentionFlow

_OF_THE_GATE = 4
"""What its sigmoid and its products keep."""


def keys_and_values(flow: AttentionFlow, keys: int) -> tuple[float, float]:
    """Numbers of keys and of values for each token, of which there are `keys` in a row, with a prefix or without."""
    more = 1 + flow.length / keys
    return more * (flow.attention.q + flow.marks), more * (flow.attention.a + flow.marks)


def beside(flow: AttentionFlow, keys: int) -> float:
    """What a gated prefix keeps beside longer queries, keys, values and output."""
    if flow.prefix is None or not flow.gated:
        return 0.0
    attention, length = flow.attention, flow.length
    total = attention.q + length * attention.q / keys * ("q" in flow.made)
    total += attention.a * (attention.k == attention.q) + flow.marks  # grouped shares are copied
    if flow.prefix.gate == "prefix":
        total += flow.marks + attention.a
    return total


def of_its_gate(flow: AttentionFlow, hidden: int) -> int:
    """What the gate keeps, which computes in float32 or under autocast."""
    return flow.gated * (hidden + _OF_THE_GATE)
