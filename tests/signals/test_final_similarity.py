"""The similarity of a block's output to that of the last block of its stack, against the model's own hidden states."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import alone, before_label, collate, first, last, real, sample
from torch import Tensor, nn

from architectures import tiny
from frostline.signals import measure


def check(model: Any, rows: list[dict[str, Any]], stacks: list[tuple[nn.ModuleList, Any]]) -> None:
    """`stacks` has the blocks of each stack, and what gives the position that is read in a row."""
    cosines = []
    for row in rows:
        own = []
        for blocks, place in stacks:
            states: list[Tensor] = []
            handles = [
                block.register_forward_hook(
                    lambda _m, _i, output, to=states: to.append(output[0] if isinstance(output, tuple) else output)
                )
                for block in blocks
            ]
            with torch.no_grad():
                model(**alone(row))
            for handle in handles:
                handle.remove()
            read = [state[0, place(row)].double() for state in states]
            own += [float(torch.cosine_similarity(state, read[-1], 0)) for state in read]
        cosines.append(own)
    found = measure(model, rows, collate, signals=["final_similarity"])["final_similarity"]
    for one, values in zip(found, zip(*cosines, strict=True), strict=True):
        assert one.value == pytest.approx(statistics.mean(values), rel=1e-3, abs=1e-6)
        assert one.error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, rel=2e-3, abs=1e-6)
    assert found[-1].value == pytest.approx(1, abs=1e-6)


def test_tiny_models() -> None:
    llama, bert = tiny("llama").eval(), tiny("bert").eval()
    check(llama, sample(llama), [(llama.model.layers, before_label)])
    check(bert, sample(bert), [(bert.bert.encoder.layer, first)])


def test_each_stack_is_compared_with_its_own_last_block() -> None:
    model = tiny("t5").eval()
    check(model, sample(model), [(model.encoder.block, last), (model.decoder.block, first)])


@pytest.mark.parametrize(
    ("name", "blocks", "place"),
    [("all-MiniLM-L6-v2", "bert.encoder.layer", first), ("base16", "model.layers", before_label)],
)
def test_real_models(name: str, blocks: str, place: Any, models_dir: Path) -> None:
    model, rows = real(models_dir / name)
    check(model, rows, [(model.get_submodule(blocks), place)])
