"""The empirical Fisher's trace against a plain loop over rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import alone, collate, real, sample

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.signals import Measurement, measure


def plain(model: Any, rows: list[dict[str, Any]], stacks: list[str]) -> list[list[float]]:
    """For each row, the mean squared gradient of its own loss, over the parameters of each block of `stacks`."""
    found = []
    for row in rows:
        model.zero_grad()
        model(**alone(row)).loss.backward()
        blocks = [block for stack in stacks for block in model.get_submodule(stack)]
        own = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        sums = [sum(float(p.grad.double().square().sum()) for p in block if p.grad is not None) for block in own]
        found.append([one / sum(p.numel() for p in block) for one, block in zip(sums, own, strict=True)])
    model.zero_grad()
    return found


def check(found: tuple[Measurement, ...], rows: list[list[float]]) -> None:
    for one, values in zip(found, zip(*rows, strict=True), strict=True):
        assert one.value == pytest.approx(statistics.mean(values), rel=1e-3)
        assert one.error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("llama", ["model.layers"]),
        ("mixtral", ["model.layers"]),
        ("bert", ["bert.encoder.layer"]),
        ("t5", ["encoder.block", "decoder.block"]),
    ],
)
def test_it_is_the_mean_square_of_each_rows_gradient(name: str, stacks: list[str]) -> None:
    model = tiny(name).eval()
    rows = sample(model)
    before = [parameter.requires_grad_(index % 2 == 0).grad for index, parameter in enumerate(model.parameters())]
    found = measure(model, rows, collate, signals=["fisher"])["fisher"]
    assert [parameter.grad for parameter in model.parameters()] == before
    assert [parameter.requires_grad for parameter in model.parameters()] == [i % 2 == 0 for i in range(len(before))]
    model.requires_grad_(True)
    if name == "t5":  # the tables of relative positions are shared by the blocks, so they belong to none
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.requires_grad_(False)
    check(found, plain(model, rows, stacks))
    mean = measure(model, rows, collate, signals=["gradient_norm"])["gradient_norm"]
    sizes = [block.parameters for block in find_anatomy(model).blocks]
    for one, other, size in zip(found, mean, sizes, strict=True):
        assert (one.value or 0) * size > (other.value or 0) ** 2  # rows cancel in the mean


@pytest.mark.parametrize(("name", "stack"), [("all-MiniLM-L6-v2", "bert.encoder.layer"), ("base16", "model.layers")])
def test_real_models(name: str, stack: str, models_dir: Path) -> None:
    model, rows = real(models_dir / name)
    check(measure(model, rows, collate, signals=["fisher"])["fisher"], plain(model, rows, [stack]))


def test_a_row_without_a_label_does_not_count() -> None:
    model = tiny("llama")
    rows = sample(model)
    unlabelled = {**rows[0], "labels": [-100] * len(rows[0]["labels"])}
    found = measure(model, [*rows[1:], unlabelled], collate, signals=["fisher"])
    assert found == measure(model, rows[1:], collate, signals=["fisher"])
    with pytest.raises(UserError, match="no row of the sample has a label to predict"):
        measure(model, [unlabelled], collate, signals=["fisher"])


def test_it_needs_the_whole_model() -> None:
    model = tiny("llama")
    with pytest.raises(UserError, match="fisher: gradients need the whole model in memory"):
        measure(model, sample(model), collate, signals=["fisher"], load=lambda _names: {})


def test_numbers_as_labels() -> None:
    model = tiny("llama", "classification", num_labels=1).eval()
    rows = [{**row, "labels": 0.5 * index} for index, row in enumerate(sample(model))]
    check(measure(model, rows, collate, signals=["fisher"])["fisher"], plain(model, rows, ["model.layers"]))
    assert torch.is_grad_enabled()
