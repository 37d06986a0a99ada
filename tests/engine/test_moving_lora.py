"""LoRA on blocks that train by turns: against a plain loop over PEFT's own layers, killed and resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_moving_plans import BLOCKS, OPTIONS, STEPS, Reference, arguments, assert_same_training, linear, of_freezeout

from architectures import tiny
from cache_cases import StopAt, collate, rows_for
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_delta, save_delta
from frostline.engine import Trainer
from frostline.plan import phases
from frostline.run import make_schedule
from grids import slow_but

NAMES = ["lisa", "badam", "freezeout", "gradual"]
RATE = 0.05


def trainer(folder: Path, stem: str, **options: Any) -> Trainer:
    model = tiny("llama", dropout=0.0, num_hidden_layers=BLOCKS)
    schedule = make_schedule(
        model, f"{stem}+lora", steps=STEPS, options={**OPTIONS[stem], "lora": {"dropout": 0.0, "r": 4}}
    )
    return Trainer(
        model, arguments(folder, **options), schedule=schedule, train_dataset=rows_for(model, 16), data_collator=collate
    )


@pytest.mark.parametrize("stem", slow_but(["lisa"], NAMES))
def test_lora_of_blocks_that_train_by_turns_is_that_of_a_plain_loop(tmp_path: Path, own_cache: None, stem: str) -> None:
    made = trainer(tmp_path, stem, optim="sgd", learning_rate=RATE)
    start, batches, found = copy.deepcopy(made.model), list[Any](), list[float]()
    own = made.training_step

    def training_step(model: Any, inputs: Any, *given: Any) -> Any:
        batches.append({key: value.clone() for key, value in inputs.items()})
        loss = own(model, inputs, *given)
        found.append(float(loss))
        return loss

    made.training_step = training_step  # type: ignore[method-assign]
    made.train()
    assert len(made.changes) >= 4
    anatomy, plans = find_anatomy(tiny("llama", num_hidden_layers=BLOCKS)), phases(made.schedule, STEPS)

    def trains(step: int, sums: Any) -> frozenset[str]:
        plan = [plan for at, plan in plans if at <= step][-1]
        starts = tuple(f"{anatomy.blocks[i].name}." for i, mode in enumerate(plan.blocks) if mode.mode == "lora")
        return frozenset(name for name in made.applied.adapters if name.startswith(starts))

    def decaying(step: int, name: str) -> float:
        block = next(b.index for b in anatomy.blocks if name.startswith(f"{b.name}."))
        return linear(step, name) / 2.6 ** (BLOCKS - 1 - block)

    rate = {"freezeout": of_freezeout(anatomy), "gradual": decaying}.get(stem, linear)
    with torch.no_grad():
        assert abs(float(start(**batches[-1]).loss) - found[-1]) > 1e-3  # what LoRA learned shows in the loss
    plain = Reference(start, "sgd", trains, rate, RATE).run(batches)
    assert found == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("stem", slow_but(["gradual"], [*NAMES, "egeria", "smartfrz"]))
def test_lora_is_resumed_bit_for_bit(tmp_path: Path, own_cache: None, stem: str) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", stem, **saving)
    whole.train()
    killed = trainer(tmp_path / "killed", stem, **saving)
    killed.add_callback(StopAt(22))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", stem, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_same_training(whole, resumed)


def test_a_delta_holds_the_lora_of_all_turns(tmp_path: Path, own_cache: None) -> None:
    made = trainer(tmp_path / "run", "badam")
    made.train()
    save_delta(made.model, tmp_path / "delta")
    again = tiny("llama", dropout=0.0, num_hidden_layers=BLOCKS)
    load_delta(again, tmp_path / "delta")
    assert all(torch.equal(again.get_parameter(name), value) for name, value in made.model.named_parameters())


def test_blocks_that_never_train_have_no_lora(tmp_path: Path) -> None:
    made = trainer(tmp_path, "badam")  # 40 steps of 6 each: seven blocks, from the last
    with_lora = {name.split(".")[2] for name in made.applied.adapters}
    assert with_lora == {str(block) for block in range(5, 12)}
    trained = {name.split(".")[2] for name, value in made.model.named_parameters() if value.requires_grad}
    assert trained == {"11"}
