"""Arbitrary plans, for properties that hold of every one."""

from __future__ import annotations

from typing import Any, get_args

import hypothesis.strategies as st

from frostline.plan import (
    AdapterDrop,
    Bottleneck,
    Forward,
    Frozen,
    Full,
    LayerDrop,
    Lora,
    Mixture,
    Partial,
    Peft,
    Plan,
    Prefix,
    Residual,
    Targets,
    Unipelt,
)

scales = st.floats(min_value=0, exclude_min=True, max_value=1e40)
texts = st.text(st.characters(exclude_categories=["Cs"]))

frozen = st.just(Frozen())
full = st.builds(Full, lr_scale=scales)
partial = st.builds(
    Partial,
    train=st.sampled_from(["attention", "feed_forward", "norms_and_biases", "biases"]) | st.lists(texts).map(tuple),
    rows=st.floats(min_value=0, max_value=1, exclude_min=True),
    rows_seed=st.integers(0, 2**63),
    lr_scale=scales,
) | st.builds(Partial, rows=st.floats(0, 1, exclude_min=True, exclude_max=True))
targets = st.sampled_from(get_args(Targets)) | st.lists(texts).map(tuple)
lora = st.builds(
    Lora,
    r=st.integers(1, 512),
    alpha=scales,
    dropout=st.floats(0, 1, exclude_max=True),
    targets=targets,
    gate=st.booleans(),
    lr_scale=scales,
)
prefix = st.builds(
    Prefix,
    length=st.integers(0, 512),
    gate=st.sampled_from(["prefix", "output", "none"]),
    init_std=st.floats(0, 1e40),
    lr_scale=scales,
)
adapter = (
    st.builds(
        Bottleneck,
        kind=st.sampled_from(["parallel", "series"]),
        bottleneck=st.integers(1, 512),
        activation=st.sampled_from(["tanh", "relu", "gelu", "silu"]),
        bias=st.booleans(),
        targets=targets,
    )
    | st.builds(Mixture, experts=st.integers(2, 16), top_k=st.integers(1, 2), attention=st.booleans())
    | st.builds(Unipelt, r=st.integers(1, 64), gates=st.sampled_from(["token", "sequence"]), lr_scale=scales)
    | st.builds(Peft, method=texts, options=st.dictionaries(texts, st.booleans() | st.integers() | texts))
)
numbers = st.floats(-1e40, 1e40)
parts = frozen | full
modes = frozen | full | partial | lora | prefix | adapter


@st.composite
def plans(draw: Any) -> Plan:
    """A plan with runs of equal blocks, that trains something."""
    runs = draw(st.lists(st.tuples(modes, st.integers(1, 12)), min_size=1, max_size=5))
    blocks = tuple(mode for mode, count in runs for _ in range(count))
    around = {name: draw(parts) for name in ("embeddings", "final_norm", "head")}
    if all(mode.mode == "frozen" for mode in (*blocks, *around.values())):
        around["head"] = Full()
    return Plan(
        strategy=draw(texts), blocks=blocks, untie=draw(st.booleans()), forward=draw(forwards(len(blocks))), **around
    )


@st.composite
def forwards(draw: Any, depth: int) -> Forward:
    """What changes in the forward pass, if anything; the last block has a weight."""
    weights = [*draw(st.lists(numbers, min_size=depth - 1, max_size=depth - 1)), draw(numbers.filter(bool))]
    residual = st.builds(Residual, alpha=numbers, span=st.integers(1, depth))
    p, evaluate = st.floats(0, 1, exclude_max=True), st.sampled_from(["all", "every_other"])
    layerdrop = st.builds(LayerDrop, p=p, seed=st.integers(0, 99), evaluate=evaluate)
    adapterdrop = st.builds(AdapterDrop, robust=st.booleans(), evaluate=st.integers(0, depth))
    weighted = st.none() | st.just(tuple(weights))
    return draw(
        st.builds(Forward, loss_weights=weighted, residual=residual, layerdrop=layerdrop, adapterdrop=adapterdrop)
    )
