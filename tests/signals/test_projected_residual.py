"""The gradient that an update of low rank could follow, against autograd and numpy's singular values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import alone, before_label, collate, first, last, real, sample
from torch import Tensor, nn

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.signals import low_rank_norms, measure

RANK = 8
SIGNAL = "projected_residual"


def labels_of(row: dict[str, Any]) -> int:
    """How many labels the row's loss is over: no first token has one here."""
    labels = row["labels"]
    return sum(label != -100 for label in labels) if isinstance(labels, list) else 1


def low_rank(gradient: Tensor) -> float:
    """Of one matrix [m, n], or of several [copies, m, n], one by one."""
    matrices = gradient.double().numpy().reshape(-1, *gradient.shape[-2:])
    return sum(float(np.sum(np.linalg.svd(matrix, compute_uv=False)[:RANK] ** 2)) for matrix in matrices)


def plain(model: Any, rows: list[dict[str, Any]], stacks: dict[str, Any]) -> list[float]:
    """One row after another; `stacks` has path -> what gives the position that is read in a row."""
    blocks = [(block, place) for path, place in stacks.items() for block in model.get_submodule(path)]
    energies: list[list[float]] = [[] for _ in blocks]
    read: dict[nn.Module, Any] = {}

    def note(block: nn.Module, args: Any, kwargs: Any) -> None:
        read[block] = (args[0] if args else kwargs["hidden_states"]).detach()[0]

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block, _ in blocks]
    total = sum(map(labels_of, rows))
    model.zero_grad()
    for row in rows:
        (model(**alone(row)).loss * labels_of(row) / total).backward()
        for energy, (block, place) in zip(energies, blocks, strict=True):
            energy.append(float(read[block][place(row)].double().square().sum()))
    for handle in handles:
        handle.remove()
    found = []
    for (block, _), energy in zip(blocks, energies, strict=True):
        matrices = [
            p.grad
            for name, p in block.named_parameters()
            if p.dim() > 1 and p.grad is not None and "relative_attention_bias" not in name
        ]
        found.append(math.sqrt(sum(map(low_rank, matrices)) / (sum(energy) / len(energy))))
    model.zero_grad()
    return found


def check(model: Any, rows: list[dict[str, Any]], stacks: dict[str, Any]) -> None:
    expected = plain(model, rows, stacks)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    found = measure(model, rows, collate, signals=["projected_residual"])
    assert list(found) == ["projected_residual"]
    assert [one.value for one in found["projected_residual"]] == pytest.approx(expected, rel=2e-4)
    assert all(one.error is None for one in found["projected_residual"])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("llama", {"model.layers": before_label}),
        ("gpt2", {"transformer.h": before_label}),
        ("mixtral", {"model.layers": before_label}),  # one tensor of several experts
        ("bert", {"bert.encoder.layer": first}),
        ("t5", {"encoder.block": last, "decoder.block": first}),
    ],
)
def test_tiny_models(name: str, stacks: dict[str, Any]) -> None:
    model = tiny(name).eval()
    check(model, sample(model), stacks)


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("all-MiniLM-L6-v2", {"bert.encoder.layer": first}),
        pytest.param("base16", {"model.layers": before_label}, marks=pytest.mark.slow),
    ],
)
def test_real_models(name: str, stacks: dict[str, Any], models_dir: Path) -> None:
    check(*real(models_dir / name), stacks)


def test_with_other_signals_nothing_changes() -> None:
    model = tiny("llama").eval()
    rows = sample(model)
    names = ["shift", "gradient_norm", "projected_residual"]
    together = measure(model, rows, collate, signals=names)
    assert set(together) == {*names, "shift_gain", "shift_log_gain"}
    for name in names:
        assert together[name] == measure(model, rows, collate, signals=[name])[name]


def test_all_tokens_are_averaged_within_a_row() -> None:
    """Only the energy depends on which tokens are read."""
    model = tiny("llama").eval()
    rows = sample(model)
    one, every = (
        [m.value for m in measure(model, rows, collate, signals=["projected_residual"], tokens=tokens)[SIGNAL]]
        for tokens in ("first", "all")
    )
    squares = []
    for row in rows:
        with torch.no_grad():
            states = model(**alone(row), output_hidden_states=True).hidden_states[:-1]
        start = before_label(row)
        lengths = [state[0, start : start + 2].double().square().sum(-1) for state in states]
        squares.append([[float(length[0]), float(length.mean())] for length in lengths])
    means = np.mean(squares, axis=0)
    assert np.array(every) / np.array(one) == pytest.approx(np.sqrt(means[:, 0] / means[:, 1]), rel=1e-5)


def test_a_gradient_of_low_rank_is_followed_whole() -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    draw = torch.Generator().manual_seed(0)
    gradients, squares = {}, []
    for block in anatomy.blocks:
        total = 0.0
        for linear in block.linears:
            left, right = (
                torch.randn(size, RANK, generator=draw) for size in (linear.out_features, linear.in_features)
            )
            gradients[linear.weight] = left @ right.T
            total += float(gradients[linear.weight].square().sum())
        squares.append(total)
    gradients[anatomy.blocks[0].tensors[-1].name] = torch.ones(32)  # a norm's weight is no matrix
    whole = low_rank_norms(gradients, [4.0] * 4, anatomy)
    assert whole == pytest.approx([math.sqrt(total) / 2 for total in squares], rel=1e-5)
    few = low_rank_norms(gradients, [4.0] * 4, anatomy, rank=2)
    assert all(one < other for one, other in zip(few, whole, strict=True))
    assert low_rank_norms({}, [0.0, 1.0, 1.0, 1.0], anatomy) == (math.inf, 0, 0, 0)


def test_it_needs_the_whole_model_and_labels() -> None:
    model = tiny("llama")
    rows = sample(model)
    with pytest.raises(UserError, match="projected_residual: gradients need the whole model in memory"):
        measure(model, rows, collate, signals=[SIGNAL], load=lambda _names: {})
    unlabelled = [{**row, "labels": [-100] * len(row["labels"])} for row in rows]
    with pytest.raises(UserError, match="no row of the sample has a label to predict"):
        measure(model, unlabelled, collate, signals=[SIGNAL])


@pytest.mark.parametrize("signal", [SIGNAL, "gradient_norm"])
def test_a_gradient_that_is_not_finite_is_refused(signal: str) -> None:
    model = tiny("llama")
    model.lm_head.weight.data[5] = math.inf
    with pytest.raises(
        UserError, match=r"model.layers.0.*: its gradient on the sample is not finite: use another dtype"
    ):
        measure(model, sample(model), collate, signals=[signal])
