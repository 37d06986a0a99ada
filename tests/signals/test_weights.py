"""Weight change, norms and the spectral signal-to-noise ratio against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from samples import collate, sample

from architectures import batch_for, tiny
from frostline.anatomy import find_anatomy
from frostline.signals import block_norms, block_snr, loss_gradients, relative_norms, spectral_snr, weight_change


def test_weight_change_after_five_steps_is_that_of_a_plain_loop() -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        model(**batch_for(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changes = weight_change(before, dict(model.named_parameters()), anatomy)
    for index, layer in enumerate(model.model.layers):
        norms = [
            math.sqrt(float(((p.detach() - before[f"model.layers.{index}.{name}"]) ** 2).sum()))
            for name, p in layer.named_parameters()
        ]
        assert changes[index] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert weight_change(before, before, anatomy) == (0, 0, 0, 0)
    with pytest.raises(KeyError):
        weight_change(before, {}, anatomy)


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "mixtral"])
def test_gradients_of_batches_are_those_of_the_whole_sample(name: str) -> None:
    model = tiny(name)
    anatomy = find_anatomy(model)
    rows = sample(model)
    model(**{k: v for k, v in collate(rows).items() if k != "example_id"}).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    flags = [parameter.requires_grad_(i % 2 == 0).requires_grad for i, parameter in enumerate(model.parameters())]
    parts = [collate(rows[:3]), collate(rows[3:])]  # unequal, so that a mean of means would differ
    found = loss_gradients(model, anatomy, [{k: v for k, v in p.items() if k != "example_id"} for p in parts])
    in_blocks = {tensor.name for block in anatomy.blocks for tensor in block.tensors}
    assert set(found) == in_blocks & set(expected)
    for tensor, gradient in found.items():
        torch.testing.assert_close(gradient, expected[tensor], rtol=1e-3, atol=1e-6)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(p.grad, expected[n]) for n, p in model.named_parameters() if n in expected)


def test_norms_are_over_all_of_a_block() -> None:
    model = tiny("gpt2")
    anatomy = find_anatomy(model)
    weights = dict(model.named_parameters())
    gradients = {name: 3 * weight for name, weight in weights.items()}
    flat = torch.cat([p.detach().flatten() for p in model.transformer.h[2].parameters()])
    assert block_norms(weights, anatomy)[2] == pytest.approx(float(flat.norm()), rel=1e-5)
    assert relative_norms(gradients, weights, anatomy) == pytest.approx((3, 3, 3, 3))


def plain_snr(matrix: np.ndarray) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)
    sigma = (np.percentile(values, 75) - np.percentile(values, 25)) / 1.349
    epsilon = sigma * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    signal = sum(value for value in values if value > epsilon)
    noise = sum(value for value in values if value <= epsilon)
    return signal / noise / max(values)


@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (50, 30)])
def test_spectral_snr(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=shape) + 5 * np.outer(draw.normal(size=shape[0]), draw.normal(size=shape[1]))
    assert spectral_snr(torch.tensor(matrix)) == pytest.approx(plain_snr(matrix), rel=1e-4)


def test_no_noise_is_infinitely_clear() -> None:
    assert spectral_snr(torch.eye(6)) == math.inf


def test_snr_of_each_matrix_of_a_block() -> None:
    model = tiny("mixtral")
    block = find_anatomy(model).blocks[1]
    found = dict(block_snr(dict(model.named_parameters()), block))
    layer = model.model.layers[1]
    assert found["self_attn.q_proj"] == pytest.approx(
        plain_snr(layer.self_attn.q_proj.weight.detach().numpy()), rel=1e-4
    )
    experts = [plain_snr(expert.detach().numpy()) for expert in layer.mlp.experts.down_proj]
    assert found["mlp.experts.down_proj"] == pytest.approx(sum(experts) / 4, rel=1e-4)
    assert len(found) == len(block.linears)
