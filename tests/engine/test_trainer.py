"""`frostline.Trainer`: against a plain loop, exact resume for every strategy, whole checkpoints, clear failures."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

import frostline.checkpoints._state as state
from architectures import batch_for, tiny
from cache_cases import StopAt
from frostline.checkpoints import trained_tensors
from frostline.core.errors import CheckpointError, ConfigError, FrostlineError, TrainingError
from frostline.engine import Trainer
from frostline.plan import FixedSchedule, Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan
from grids import slow_but
from tolerances import assert_same_steps

STRATEGIES = ["all", "head", "bot50", "top50", "int50", "random50", "lora"]
PLANS = {
    "rows": Plan(blocks=(Frozen(), Frozen(), Partial(rows=0.5), Full(lr_scale=0.1))),
    "mixed": Plan(blocks=(Frozen(), Lora(r=2, lr_scale=2.0), Full(), Frozen())),
}


def rows(model: Any, count: int = 32) -> list[dict[str, torch.Tensor]]:
    batch = batch_for(model, batch=count, length=8, seed=1)
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **given | options)


def trainer(folder: Path, plan: Plan | str, name: str = "llama", **options: Any) -> Trainer:
    model = tiny(name, dropout=0.1)
    chosen = make_plan(model, plan) if isinstance(plan, str) else plan
    return Trainer(model, arguments(folder, **options), plan=chosen, train_dataset=rows(model))


@pytest.mark.parametrize("plan", slow_but(["bot50", "lora", "mixed"], [*STRATEGIES, *PLANS]))
def test_killed_and_resumed_is_never_killed(tmp_path: Path, plan: str) -> None:
    chosen = PLANS.get(plan, plan)
    whole = trainer(tmp_path / "whole", chosen)
    whole.train()
    killed = trainer(tmp_path / "killed", chosen)
    killed.add_callback(StopAt(8))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", chosen)
    resumed.train(resume_from_checkpoint=True)
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("name", slow_but(["t5"], ["bert", "t5", "gpt2"]))
def test_resume_on_other_architectures_with_accumulation(tmp_path: Path, name: str) -> None:
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    whole = trainer(tmp_path / "whole", "bot50", name, **options)
    whole.train()
    killed = trainer(tmp_path / "killed", "bot50", name, **options)
    killed.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", "bot50", name, **options)
    resumed.train(resume_from_checkpoint=True)
    got = trained_tensors(resumed.model)
    assert all(torch.equal(tensor, got[name]) for name, tensor in trained_tensors(whole.model).items())


def test_resumed_from_its_last_checkpoint_takes_no_further_step(tmp_path: Path) -> None:
    options = {"max_steps": 6, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path, "bot50", **options)
    whole.train()
    (tmp_path / ".unfinished.killed").mkdir()
    resumed = trainer(tmp_path, "bot50", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == 6
    got = trained_tensors(resumed.model)
    assert all(torch.equal(tensor, got[name]) for name, tensor in trained_tensors(whole.model).items())
    assert not (tmp_path / ".unfinished.killed").exists()


def test_a_new_run_in_an_old_folder_replaces_its_checkpoints(tmp_path: Path) -> None:
    for seed in (1, 2):
        made = trainer(tmp_path, "lora", seed=seed, max_steps=3)
        made.train()
        assert (tmp_path / "checkpoint-3" / "delta.json").stat().st_mode & 0o777 == 0o644
    saved = load_file(tmp_path / "checkpoint-3" / "delta.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trained_tensors(made.model).items())


def test_the_last_loss_is_that_of_the_whole_step_and_the_schedule_is_asked_once(tmp_path: Path) -> None:
    asked: list[int] = []

    class Counting(FixedSchedule):
        settled = False

        def next(self, step: int, observations: Any) -> Plan | None:
            asked.append(step)
            return super().next(step, observations)

    losses = {}
    for batch, accumulation in ((8, 1), (2, 4)):
        model = tiny("llama")
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 3}
        schedule = Counting(make_plan(model, "bot50"))
        made = Trainer(model, arguments(tmp_path, **options), schedule=schedule, train_dataset=rows(model))
        asked.clear()
        made.train()
        losses[accumulation] = made.last_loss
        assert asked == [1, 2]
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)


def test_gives_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_strategy": "no", "lr_scheduler_type": "constant", "learning_rate": 0.1}
    epsilon = 0.1  # so large that AdamW does not make a step of a gradient that is rounding alone
    ours = trainer(tmp_path, "bot50", adam_epsilon=epsilon, **options)
    ours.model.config.attention_dropout = 0.0
    for module in ours.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    order: list[dict[str, torch.Tensor]] = []
    collate = ours.data_collator
    ours.data_collator = lambda batch: order.append(collate(batch)) or order[-1]  # type: ignore[func-returns-value]
    ours.train()
    plain = tiny("llama")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(ours.model.get_parameter(name).requires_grad)
    start = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer, largest = torch.optim.AdamW(trained, lr=0.1, eps=epsilon, weight_decay=0.0), 0.0
    steps = [batch for batch in order if len(batch["input_ids"]) == 4]  # before the first, three rows are tried
    for batch in steps[:5]:
        plain(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        largest = max(largest, *(float(parameter.grad.abs().max()) for parameter in trained))
        optimizer.step()
        optimizer.zero_grad()
    one, other = ({name: p.detach() for name, p in model.named_parameters()} for model in (plain, ours.model))
    assert_same_steps(start, one, other, 5, amplified=2 * (1 + largest / epsilon))


def test_learning_rate_scales_reach_the_optimizer(tmp_path: Path) -> None:
    made = trainer(tmp_path, PLANS["mixed"])
    groups = made.create_optimizer().param_groups
    names = made._names()
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_" in name} == {2e-3}
    assert {rate for name, rate in rates.items() if "lora_" not in name} == {1e-3}


def test_a_checkpoint_holds_no_pickle_and_only_what_changed(tmp_path: Path) -> None:
    made = trainer(tmp_path, "bot50")
    made.train()
    files = sorted(path.name for path in (tmp_path / "checkpoint-6").iterdir())
    assert files == [
        "README.md",
        "config.json",
        "delta.json",
        "delta.safetensors",
        "optimizer.json",
        "optimizer.safetensors",
        "rng_0.json",
        "schedule.json",
        "scheduler.json",
        "trainer_state.json",
    ]
    assert not list(tmp_path.glob(".unfinished.*"))


def test_a_full_disk_while_saving_leaves_earlier_checkpoints_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, "bot50")
    real, calls = state.save_file, []

    def full(tensors: Any, path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **options)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(FrostlineError, match=r"no space left while writing .*checkpoint-6"):
        made.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    resumed = trainer(tmp_path, "bot50")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    (tmp_path / "checkpoint-6" / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"optimizer state .*cannot be read"):
        trainer(tmp_path, "bot50").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_old_checkpoints_are_removed_and_the_best_is_found(tmp_path: Path) -> None:
    model = tiny("llama")
    options = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    made = Trainer(
        model,
        arguments(tmp_path, **options),
        plan=make_plan(model, "bot50"),
        train_dataset=rows(model),
        eval_dataset=rows(model, 8),
    )
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{made.state.best_global_step}")
    assert Path(made.state.best_model_checkpoint).is_dir()
    best = min(entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry)
    assert made.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)


def test_the_callbacks_are_those_of_transformers(tmp_path: Path) -> None:
    ours = trainer(tmp_path, "bot50")
    plain = transformers.Trainer(tiny("llama"), arguments(tmp_path))
    kinds = [[type(callback) for callback in made.callback_handler.callbacks] for made in (ours, plain)]
    assert kinds[0] == kinds[1]


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path) -> None:
    made = trainer(tmp_path, "bot50")

    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                model.model.norm.weight.data.fill_(float("nan"))

    made.add_callback(Poison())
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5: .*checkpoint-3"):
        made.train()
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()


def test_weights_that_are_no_numbers_are_named_at_the_first_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, "bot50")
    made.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"nan at step 1: tensor model\.layers\.1\.mlp\.up_proj\.weight of the model"
    ):
        made.train()


def test_what_the_trainer_refuses(tmp_path: Path) -> None:
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"use plan=\.\.\. or schedule"):
        Trainer(model, arguments(tmp_path), train_dataset=rows(model))
    plan = make_plan(model, "bot50")
    with pytest.raises(ConfigError, match="not both"):
        Trainer(model, arguments(tmp_path), plan=plan, schedule=FixedSchedule(plan))
    with pytest.raises(ConfigError, match="use_reentrant"):
        reentrant = arguments(
            tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
        )
        Trainer(model, reentrant, plan=plan)

    class Watching(FixedSchedule):
        observes = frozenset({"gradient_nrom"})

    with pytest.raises(ConfigError, match=r"unknown signal to observe while training 'gradient_nrom': .*known"):
        Trainer(tiny("llama"), arguments(tmp_path), schedule=Watching(plan))


def test_checkpointing_in_the_trainer_crosses_no_frozen_block(tmp_path: Path) -> None:
    made = trainer(tmp_path, "bot50", max_steps=2, activation_checkpointing=True, save_strategy="no")
    made.loss_positions, made.session.mode = False, "off"  # both run the model before the first step
    seen: list[bool] = []
    layers = made.model.model.layers
    layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    layers[3].register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    made.train()
    assert seen == [False, True] * 2
