"""The optimizer's step in the backward pass: the same training, without the gradients."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import arguments, rows
from transformers import TrainerCallback

from allocator import live_bytes_at_peak
from architectures import tiny
from cache_cases import StopAt
from frostline.checkpoints import trained_tensors
from frostline.core.errors import ConfigError, TrainingError
from frostline.engine import Trainer
from frostline.engine._in_backward import step_in_backward
from frostline.plan import Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan

MIXED = Plan(blocks=(Frozen(), Lora(r=2, lr_scale=2.0), Full(), Partial(rows=0.5)))


def trainer(folder: Path, name: str = "llama", plan: Plan | str = "bot50", inside: bool = True, **opts: Any) -> Trainer:
    model = tiny(name, dropout=0.1)
    chosen = make_plan(model, plan) if isinstance(plan, str) else plan
    given = arguments(folder, **{"max_grad_norm": 0.0, "weight_decay": 0.1, **opts})
    return Trainer(model, given, plan=chosen, train_dataset=rows(model), optimizer_in_backward=inside)


def same(one: Trainer, other: Trainer) -> bool:
    expected, got = trained_tensors(one.model), trained_tensors(other.model)
    return expected.keys() == got.keys() and all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "plan", "options"),
    [
        ("llama", "all", {}),
        ("gemma", "all", {"optim": "adamw_torch"}),
        ("llama", MIXED, {}),
        ("llama", "bot50", {"optim": "sgd", "activation_checkpointing": True}),
        ("mixtral", "bot50", {}),
        ("bert", "bot50", {}),
        ("t5", "all", {}),
    ],
)
def test_weights_and_log_are_those_of_the_step_after_backward(
    tmp_path: Path, name: str, plan: Plan | str, options: dict[str, Any]
) -> None:
    options = {"max_steps": 4, "save_strategy": "no", **options}
    after = trainer(tmp_path, name, plan, inside=False, **options)
    after.train()
    inside = trainer(tmp_path, name, plan, **options)
    inside.train()
    assert same(after, inside)
    for expected, got in zip(after.state.log_history[:-1], inside.state.log_history[:-1], strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
        assert got["grad_norm"] > 0


def test_killed_and_resumed_is_never_killed(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", plan=MIXED)
    whole.train()
    killed = trainer(tmp_path / "killed", plan=MIXED)
    killed.add_callback(StopAt(8))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", plan=MIXED)
    resumed.train(resume_from_checkpoint=True)
    assert same(whole, resumed)


def test_no_weight_moves_at_a_loss_that_is_no_number(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    before: dict[str, torch.Tensor] = {}

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 2:
                model.model.norm.weight.data.fill_(torch.inf)
                before.update({name: tensor.clone() for name, tensor in trained_tensors(model).items()})

    made.add_callback(Poison())
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        made.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_tensors(made.model).items())


def test_gradients_never_exist_all_at_once() -> None:
    def peak(*, inside: bool) -> int:
        weights = [torch.nn.Parameter(torch.randn(256, 256)) for _ in range(8)]
        optimizer = torch.optim.SGD(weights, lr=1e-3)

        def step() -> None:
            value = torch.randn(1, 256)
            for weight in weights:
                value = value @ weight
            value.sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        with step_in_backward(optimizer) if inside else nullcontext():
            return live_bytes_at_peak(step)

    matrix = 4 * 256 * 256
    assert peak(inside=False) >= 8 * matrix
    assert peak(inside=True) < 3 * matrix


def test_the_model_is_free_again_after_training(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1)
    made.train()
    model, before = made.model, trained_tensors(made.model)
    model(**{key: value[None] for key, value in rows(model)[0].items()}).loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_tensors(model).items())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 1.0}, "use max_grad_norm=0"),
        ({"gradient_accumulation_steps": 2}, "use gradient_accumulation_steps=1"),
    ],
)
def test_what_needs_all_gradients_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer_in_backward .*{message}"):
        trainer(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
