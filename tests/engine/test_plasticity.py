"""Signals that are measured on the step's batch: plasticity against its formula, and how far weights moved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_moving_plans import arguments

import frostline as fl
from architectures import batch_for, tiny
from cache_cases import collate, rows_for
from frostline.anatomy import find_anatomy
from frostline.core.errors import ConfigError
from frostline.engine import Trainer
from frostline.engine._observe import Observer, Step
from frostline.engine._plasticity import Reference, plasticity, similarity_loss
from frostline.plan import Frozen, Full, Plan
from frostline.run import make_schedule
from frostline.surgery import apply


def test_the_similarity_preserving_loss_is_its_formula() -> None:
    own, other = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = []
    for hidden in (own, other):
        rows = np.stack([(row * m[:, None]).ravel() for row, m in zip(hidden.numpy(), mask.numpy(), strict=True)])
        similar = rows @ rows.T
        found.append(similar / np.linalg.norm(similar, axis=1, keepdims=True))
    expected = np.sum((found[0] - found[1]) ** 2) / 9
    assert float(similarity_loss(own, other, mask)) == pytest.approx(float(expected), rel=1e-5)
    changed = other.masked_fill(mask[..., None] == 0, 7.0)
    assert float(similarity_loss(own, changed, mask)) == pytest.approx(float(expected), rel=1e-5)
    assert float(similarity_loss(own, own)) == 0


def test_one_row_is_compared_token_by_token() -> None:
    own, other = torch.randn(1, 6, 5), torch.randn(1, 6, 5)
    assert float(similarity_loss(own, other)) > 0.001  # of one row alone it would always be 0


@pytest.mark.parametrize("architecture", ["llama", "bert", "gpt2", "t5", "gpt_neox", "mixtral"])
def test_plasticity_is_that_of_two_whole_models(architecture: str) -> None:
    """Whatever a pass does besides: keys kept for decoding (`use_cache`), a block's place in a tuple, routers."""
    model = tiny(architecture, num_hidden_layers=3).train()
    batch = batch_for(model)
    name = find_anatomy(model).blocks[1].name
    block = model.get_submodule(name)
    reference = {key: value + 0.1 * torch.randn_like(value) for key, value in block.named_parameters()}
    before = torch.random.get_rng_state()
    found = plasticity(model, block, {k: v.detach() for k, v in reference.items()}, lambda: model(**batch), None)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, value in other.get_submodule(name).named_parameters():
            value.copy_(reference[key])
    kept: list[torch.Tensor] = []
    for each in (model, other):
        noted = each.get_submodule(name).register_forward_hook(
            lambda _m, _i, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
        with torch.no_grad():
            each.eval()(**batch)
        noted.remove()
    assert found == pytest.approx(float(similarity_loss(kept[0], kept[1])), rel=1e-4)
    assert found > 1e-6


def test_the_reference_is_the_block_in_8_bits_and_is_made_anew() -> None:
    model = tiny("llama", dropout=0.0, num_hidden_layers=3)
    block = model.get_submodule("model.layers.0")
    reference = Reference(dict(block.named_parameters()), every=2)
    matrix = block.self_attn.q_proj.weight
    kept = reference.tensors["self_attn.q_proj.weight"]
    step = matrix.detach().abs().amax(dim=1, keepdim=True) / 127
    assert kept.dtype is torch.int8 and kept.abs().amax(dim=1).eq(127).all()
    assert ((kept * step - matrix).abs() <= step / 2 + 1e-9).all()
    batch = batch_for(model)
    values = []
    for _ in range(4):
        with torch.no_grad():
            matrix.mul_(1.3)
        values.append(reference.read(model, block, lambda: model(**batch), None))
    assert values[1] > values[0] and values[3] > values[2]  # the same reference
    assert values[2] < values[1]  # a new one
    assert int(reference.tensors["|readings"]) == 4


def test_what_is_observed_is_saved(tmp_path: Path) -> None:
    names = {"plasticity/3", "weight_motion"}

    def made() -> tuple[Any, Observer]:
        torch.manual_seed(0)
        model = tiny("llama", dropout=0.0, num_hidden_layers=3)
        apply(Plan(blocks=(Frozen(), Full(), Full())), model)
        return model, Observer(model, names)

    def move(model: Any, by: float) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(by * parameter.flip(0))

    def read(model: Any, observer: Observer) -> dict[str, Any]:
        batch = batch_for(model)
        observer.step = Step(lambda: model(**batch), lambda: None, lambda: (1.0, 0.0))
        return {name: observer[name] for name in sorted(names)}

    model, observer = made()
    move(model, 0.1)
    first = read(model, observer)
    assert first["plasticity/3"][0] == first["plasticity/3"][2] == 0 < first["plasticity/3"][1]
    assert first["weight_motion"][0] == 0 < min(first["weight_motion"][1:])
    observer.save(tmp_path)
    move(model, 0.05)
    expected = read(model, observer)

    other, resumed = made()
    move(other, 0.1)
    resumed.load(tmp_path)
    move(other, 0.05)
    assert read(other, resumed) == expected


def test_motion_is_the_share_by_which_weights_moved() -> None:
    model = tiny("llama", dropout=0.0, num_hidden_layers=3)
    apply(Plan(blocks=(Frozen(), Full(), Full())), model)
    observer = Observer(model, {"weight_motion"})
    for factor in (1.25, 1.25, 2.0):
        with torch.no_grad():
            for parameter in model.model.layers[1].parameters():
                parameter.mul_(factor)
        assert observer["weight_motion"] == pytest.approx((0.0, 1 - 1 / factor, 0.0))


def test_decisions_are_the_same_with_the_cache(tmp_path: Path, own_cache: None) -> None:
    losses, changes = {}, {}
    for mode in ("auto", "off"):
        model = tiny("llama", dropout=0.0, num_hidden_layers=6)
        options = {"decisions": 30, "window": 1, "tolerance": 0.9, "thaw": False}
        schedule = make_schedule(model, "egeria", steps=40, options=options)
        rows = rows_for(model, 8)
        made = Trainer(
            model,
            arguments(tmp_path / mode, optim="sgd", learning_rate=0.05),
            schedule=schedule,
            train_dataset=rows,
            data_collator=collate,
            activation_cache=mode,  # type: ignore[arg-type]
        )
        made.train()
        losses[mode] = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        changes[mode] = [(change.step, change.plan.boundary) for change in made.changes]
        assert made.cache_report.used == (mode == "auto")
    assert changes["auto"] == changes["off"] and len(changes["auto"]) >= 3
    assert losses["auto"] == pytest.approx(losses["off"], rel=1e-4)


@pytest.mark.parametrize("name", ["egeria", "smartfrz"])
def test_attach_has_no_batch_to_measure(tmp_path: Path, name: str) -> None:
    model = tiny("llama", dropout=0.0)
    plain = transformers.Trainer(model, arguments(tmp_path), train_dataset=rows_for(model, 16), data_collator=collate)
    with pytest.raises(ConfigError, match=rf"attach: '{name}' .*: use frostline.Trainer, or another strategy"):
        fl.attach(plain, schedule=make_schedule(model, name, steps=40))
