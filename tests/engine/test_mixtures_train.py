"""Mixtures of experts in training: whose loss holds their balance, exact resume, the activation cache, the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from architectures import batch_for, tiny
from frostline.adapters import mixtures, router_statistics
from frostline.core.errors import UserError
from frostline.engine import Trainer
from frostline.plan import Forward, Frozen, Mixture, Plan
from frostline.records import read_record
from frostline.run import read_config, train
from frostline.surgery import apply

MODE = Mixture(experts=4, r=2, dropout=0.0, balance=0.5)
PLAN = Plan(strategy="mixlora", blocks=(Frozen(), Frozen(), MODE, MODE), head=Frozen(), final_norm=Frozen())


def trainer(folder: Path, plan: Plan = PLAN, **options: Any) -> Trainer:
    own = {
        key: options.pop(key) for key in ("activation_cache", "compute_loss_func", "loss_positions") if key in options
    }
    given: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    model = tiny("llama")
    batch = batch_for(model, batch=16, length=8, seed=1)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]
    arguments = TrainingArguments(output_dir=str(folder), **given | options)
    return Trainer(model, arguments, plan=plan, train_dataset=rows, **own)


def losses(done: Trainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def test_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight, stopped = trainer(tmp_path / "a"), trainer(tmp_path / "b", max_steps=2)
    straight.train()
    stopped.train()
    resumed = trainer(tmp_path / "b")
    resumed.train(resume_from_checkpoint=True)
    one, other = (load_file(tmp_path / run / "checkpoint-4" / "delta.safetensors") for run in "ab")
    assert any(name.endswith("router") for name in one)
    assert not any("assigned" in name or "balance" in name for name in one), "statistics are no state"
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_activation_cache_and_loss_positions_keep_the_balance(tmp_path: Path) -> None:
    cached = trainer(tmp_path / "a", activation_cache="on")
    plain = trainer(tmp_path / "b", activation_cache="off", loss_positions=False)
    cached.train()
    plain.train()
    assert cached.cache_report.used
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-4)
    assert cached.positions is not None
    assert "the balance loss of its experts reads all tokens" in " ".join(cached.notices)


def test_accumulated_batches_weigh_the_balance_as_one_batch_does(tmp_path: Path) -> None:
    """The first loss that is logged: that of a batch of 4, or of four batches of 1 whose balance losses average."""
    one = trainer(
        tmp_path / "a", plan=Plan(blocks=(*PLAN.blocks[:2], *(MODE.model_copy(update={"balance": 50.0}),) * 2))
    )
    four = trainer(
        tmp_path / "b",
        plan=one.applied.plan,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    one.train()
    four.train()
    assert losses(four)[0] == pytest.approx(losses(one)[0], rel=0.1)


def test_a_loss_outside_of_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its balance loss is added to the model's own"):
        trainer(tmp_path, label_smoothing_factor=0.1)
    unbalanced = tuple(mode.model_copy(update={"balance": 0.0}) if mode == MODE else mode for mode in PLAN.blocks)
    trainer(tmp_path, plan=Plan(strategy="mixlora", blocks=unbalanced), label_smoothing_factor=0.1)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 1.0, 0.0)])
def test_a_layered_loss_weighs_no_balance(weights: tuple[float, ...]) -> None:
    model = tiny("llama")
    apply(PLAN.model_copy(update={"forward": Forward(loss_weights=weights)}), model)
    batch = batch_for(model)
    with_balance = model.train()(**batch)
    for part in mixtures(model):
        part.balance = 0.0
    without = model(**batch).loss
    assert with_balance.balance_loss > 0.1
    assert torch.allclose(with_balance.loss, without + with_balance.balance_loss)


def test_in_evaluation_the_loss_is_the_models_and_nothing_is_counted() -> None:
    model = tiny("llama")
    batch = batch_for(model)
    before = model.eval()(**batch).loss
    apply(PLAN, model)
    assert torch.allclose(model.eval()(**batch).loss, before)
    assert router_statistics(model) == {}
    model.train()(**batch)
    assert list(router_statistics(model)) == ["model.layers.2.mlp", "model.layers.3.mlp"]


def test_the_record_holds_the_routers_statistics(
    tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))
    rows = tmp_path / "moods.jsonl"
    rows.write_text("".join(f'{{"text": "Tom saw {i} dogs", "label": "{i % 2}"}}\n' for i in range(20)))
    settings = {"model": "stories260K", "task": str(rows), "out": str(tmp_path / "run"), "strategy": "mixlora"}
    given = [
        "max_steps=3",
        "per_device_train_batch_size=4",
        "threads=1",
        "strategy_options={experts: 3, r: 2}",
    ]
    train(read_config(None, given, **settings))
    routers = read_record(tmp_path / "run").routers
    assert routers is not None
    assert list(routers) == [f"model.layers.{index}.mlp" for index in range(5)]
    for statistics in routers.values():
        assert len(statistics["shares"]) == 3
        assert sum(statistics["shares"]) == pytest.approx(1)
        assert 0.9 < statistics["balance_loss"] < 3
