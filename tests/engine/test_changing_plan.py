"""Schedules that change the plan while training: against a plain loop, killed and resumed, saved, with an activation
cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments, get_cosine_schedule_with_warmup

from architectures import batch_for, tiny
from cache_cases import StopAt, collate, rows_for
from frostline.checkpoints import load, merge, save_delta, trained_tensors
from frostline.core.errors import ConfigError, PlanError
from frostline.engine import Trainer
from frostline.plan import BlockMode, Frozen, Full, Lora, Observations, Partial, Plan, Schedule
from frostline.run import make_schedule
from frostline.strategies import Situation
from frostline.surgery import apply as apply_plan
from frostline.surgery import change
from grids import grid, slow_but
from rotating import Rotating
from tolerances import assert_same_steps


class Steps:
    """A schedule of given plans by the step at which they begin."""

    observes: frozenset[str] = frozenset()

    def __init__(self, plans: Mapping[int, Plan]) -> None:
        self.plans, self.done, self.first = plans, 0, plans[0]

    @property
    def settled(self) -> bool:
        return self.done >= max(self.plans)

    def next(self, step: int, observations: Observations) -> Plan | None:
        self.done = step
        return self.plans.get(step)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]


def plan_of(*modes: BlockMode) -> Plan:
    return Plan(blocks=modes)


THAWING = {0: plan_of(Frozen(), Frozen(), Frozen(), Full()), 2: plan_of(Frozen(), Full(), Full(lr_scale=0.5), Full())}
FREEZING = {0: plan_of(Full(), Full(), Full(), Full()), 2: plan_of(Frozen(), Frozen(), Full(), Full())}
MIXED = {
    0: plan_of(Lora(r=2), Partial(rows=0.5), Full(), Full()),
    2: plan_of(Frozen(), Partial(rows=0.5), Frozen(), Full()),
    5: plan_of(Lora(r=2, lr_scale=2.0), Frozen(), Partial(train="attention"), Frozen()),
}
PLANS = {"thawing": THAWING, "freezing": FREEZING, "mixed": MIXED}
STRATEGIES = ["adt-l50", "adt-h50", "adt-l25+lora"]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": 9,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return TrainingArguments(output_dir=str(folder), **given | options)


def schedule_for(name: str, model: Any) -> Schedule:
    if name == "rotating":
        return Rotating(Situation.of(model), every=3)
    return Steps(PLANS[name]) if name in PLANS else make_schedule(model, name)


def trainer(folder: Path, name: str, architecture: str = "llama", dropout: float = 0.1, **options: Any) -> Trainer:
    model = tiny(architecture, dropout=dropout)
    given = {"activation_cache": options.pop("activation_cache", "auto")}
    schedule = schedule_for(name, model)
    rows = rows_for(model, 16)
    return Trainer(
        model, arguments(folder, **options), schedule=schedule, train_dataset=rows, data_collator=collate, **given
    )


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "stop"), slow_but([("thawing", 3), ("adt-h50", 6)], grid([*PLANS, *STRATEGIES], [3, 6, 8]))
)
def test_killed_at_any_point_and_resumed_is_never_killed(tmp_path: Path, name: str, stop: int) -> None:
    whole = trainer(tmp_path / "whole", name, save_strategy="no")
    whole.train()
    killed = trainer(tmp_path / "killed", name)
    killed.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", name)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.applied.plan == whole.applied.plan
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert expected.keys() == got.keys()
    for tensor in expected:
        assert torch.equal(expected[tensor], got[tensor]), tensor


@pytest.mark.parametrize(
    ("architecture", "stop"), slow_but([("llama", 7), ("bert", 8)], grid(["llama", "bert"], [2, 6, 7, 8, 11]))
)
def test_a_schedule_that_never_settles_is_resumed_anywhere(tmp_path: Path, architecture: str, stop: int) -> None:
    """Its plan changes before steps 3, 6 and 9; what it observes began with the plan."""
    whole = trainer(tmp_path / "whole", "rotating", architecture, save_strategy="no", max_steps=12)
    whole.train()
    assert not whole.schedule.settled
    assert [change.step for change in whole.changes] == [3, 6, 9]
    assert len({change.plan.blocks for change in whole.changes} | {whole.schedule.first.blocks}) > 2
    killed = trainer(tmp_path / "killed", "rotating", architecture, max_steps=12)
    killed.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", "rotating", architecture, max_steps=12)
    resumed.train(resume_from_checkpoint=True)
    assert [(change.step, change.plan) for change in resumed.changes] == [
        (change.step, change.plan) for change in whole.changes
    ]
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("architecture", slow_but(["t5"], ["bert", "t5", "gpt2"]))
def test_resume_on_other_architectures(tmp_path: Path, architecture: str) -> None:
    whole = trainer(tmp_path / "whole", "adt-l50", architecture, save_strategy="no")
    whole.train()
    killed = trainer(tmp_path / "killed", "adt-l50", architecture, save_steps=2)
    killed.add_callback(StopAt(4))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", "adt-l50", architecture, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("most", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_adt_is_a_plain_loop_that_freezes_blocks_after_five_steps(
    tmp_path: Path, architecture: str, most: bool
) -> None:
    name = "adt-h50" if most else "adt-l50"
    sgd = {"optim": "sgd", "learning_rate": 0.1}  # after which weights can be compared
    ours = trainer(tmp_path, name, architecture, 0.0, save_strategy="no", activation_cache="off", **sgd)
    ours.loss_positions = False
    order: list[dict[str, torch.Tensor]] = []
    inner = ours.data_collator
    ours.data_collator = lambda batch: order.append(inner(batch)) or order[-1]  # type: ignore[func-returns-value]
    ours.train()

    plain = tiny(architecture, dropout=0.0)
    blocks = ours.applied.anatomy.blocks
    embeddings = {tensor.name for tensor in ours.applied.anatomy.embeddings}
    for tensor, parameter in plain.named_parameters():
        parameter.requires_grad_(tensor not in embeddings)
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.1)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, 9)
    start = values(plain)
    for step, batch in enumerate(order[:9]):
        if step == 5:
            now = values(plain)
            changes = []
            for block in blocks:
                norms = [(now[tensor.name] - start[tensor.name]).norm().item() for tensor in block.tensors]
                changes.append(sum(norms) / len(norms))
            ranked = sorted(range(len(blocks)), key=lambda index: changes[index], reverse=most)
            frozen = ranked[: len(blocks) // 2]
            for index in frozen:
                for tensor in blocks[index].tensors:
                    plain.get_parameter(tensor.name).requires_grad_(False)
                    plain.get_parameter(tensor.name).grad = None
        plain(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    modes = [block.mode for block in ours.applied.plan.blocks]
    assert sorted(frozen) == [index for index, mode in enumerate(modes) if mode == "frozen"]
    assert [(change.step, change.plan) for change in ours.changes] == [(5, ours.applied.plan)]
    assert_same_steps(start, values(plain), values(ours.model), 9)


def test_what_a_plan_freezes_keeps_its_values_and_leaves_the_optimizer(tmp_path: Path) -> None:
    made = trainer(tmp_path, "freezing", save_strategy="no", activation_cache="off")
    seen: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                seen.append(values(made.model))

    made.add_callback(Look())
    before = values(made.model)
    made.train()
    after = values(made.model)
    bottom = [tensor.name for block in made.applied.anatomy.blocks[:2] for tensor in block.tensors]
    top = [tensor.name for block in made.applied.anatomy.blocks[2:] for tensor in block.tensors]
    assert all(torch.equal(seen[0][name], after[name]) for name in bottom)
    assert all(not torch.equal(before[name], seen[0][name]) for name in (*bottom, *top))
    assert all(not torch.equal(seen[0][name], after[name]) for name in top)
    held = {id(parameter) for parameter in made._bare_optimizer().state}
    assert held == {id(parameter) for parameter in made.model.parameters() if parameter.requires_grad}


def test_a_bottom_that_freezes_passes_once_and_trains_alike(tmp_path: Path) -> None:
    made, losses = {}, {}
    for mode in ("off", "on_its_own"):
        options = {"save_strategy": "no", "logging_steps": 1, "optim": "sgd", "learning_rate": 0.1}
        run = trainer(
            tmp_path / mode, "freezing", dropout=0.0, activation_cache="off" if mode == "off" else "on", **options
        )
        run.train()
        made[mode] = trained_tensors(run.model)
        losses[mode] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert run.cache_report.used == (mode != "off"), run.cache_report.reason
    assert losses["off"] == pytest.approx(losses["on_its_own"], abs=1e-4)
    assert_same_steps(values(tiny("llama")), made["off"], made["on_its_own"], 9)


def test_resumed_above_a_bottom_that_has_trained(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", "freezing", save_strategy="no", activation_cache="on")
    whole.train()
    assert whole.cache_report.used
    killed = trainer(tmp_path / "killed", "freezing", activation_cache="on")
    killed.add_callback(StopAt(6))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", "freezing", activation_cache="on")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.cache_report.used
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_bfloat16_bottom_that_trained_before_is_cached(tmp_path: Path) -> None:
    """What trained is float32 from then on, above embeddings in bfloat16."""
    losses = []
    for mode in ("off", "on"):
        model = tiny("llama").to(torch.bfloat16)
        args = arguments(tmp_path / mode, save_strategy="no", logging_steps=1, max_steps=20)
        given: dict[str, Any] = {"train_dataset": rows_for(model, 16), "data_collator": collate}
        made = Trainer(model, args, schedule=schedule_for("freezing", model), activation_cache=mode, **given)
        made.train()
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert made.cache_report.used and not made.cache_report.given_up
    assert losses[1] == pytest.approx(losses[0], abs=2e-2)


@pytest.mark.parametrize("name", slow_but(["mixed", "adt-l50+lora"], [*PLANS, "adt-l50+lora"]))
@pytest.mark.parametrize("dtype", slow_but([torch.float32], [torch.float32, torch.bfloat16]))
def test_the_delta_holds_whatever_has_trained(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    base = tmp_path / "base"
    tiny("llama").to(dtype).save_pretrained(base)
    model = type(tiny("llama")).from_pretrained(base, dtype=dtype)
    made = Trainer(
        model,
        arguments(tmp_path / "run", save_strategy="no"),
        schedule=schedule_for(name, model),
        train_dataset=rows_for(model, 16),
        data_collator=collate,
    )
    made.train()
    save_delta(model, tmp_path / "delta")
    card = json.loads((tmp_path / "delta" / "delta.json").read_text())
    assert card["first_plan"] is not None
    loaded = load(tmp_path / "delta")
    expected, got = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    batch = batch_for(model, batch=2, length=6)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, loaded(**batch).logits)
    merge(tmp_path / "delta", tmp_path / "merged")
    plain = type(model).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits.float(), loaded(**batch).logits.float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (plan_of(Lora(), Full(), Full(), Full()), "block 0: a plan cannot add lora during training"),
        (plan_of(Full(), Lora(r=4), Full(), Full()), "block 1: a plan cannot add lora during training"),
        (plan_of(Full(), Full(), Partial(rows=0.5), Full()), "block 2: a plan cannot add partial during training"),
        (plan_of(Full(), Full()), "has 2 blocks, the model 4"),
        (plan_of(Full(), Full(), Full(), Full()).model_copy(update={"untie": True}), "cannot change untie"),
    ],
)
def test_what_a_later_plan_cannot_do(later: Plan, message: str) -> None:
    model = tiny("llama")
    apply_plan(plan_of(Full(), Lora(r=2), Full(), Full()), model)
    with pytest.raises(PlanError, match=message):
        change(later, model)


def test_rows_that_train_in_part_cannot_train_whole_later() -> None:
    model = tiny("llama")
    apply_plan(plan_of(Partial(rows=0.5), Full(), Full(), Full()), model)
    with pytest.raises(PlanError, match="only some rows train since the first plan"):
        change(plan_of(Full(), Full(), Full(), Full()), model)
    with pytest.raises(PlanError, match="has no plan that could change"):
        change(plan_of(Full(), Full(), Full(), Full()), tiny("llama"))


def test_a_learning_rate_that_waits_for_results_cannot_go_on(tmp_path: Path) -> None:
    made = trainer(tmp_path, "freezing", save_strategy="no")
    optimizer = made.create_optimizer()
    made.lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ConfigError, match="lr_scheduler_type: ReduceLROnPlateau cannot continue under another plan"):
        made.train()


@pytest.mark.parametrize(("activation_cache", "name"), grid(["auto", "off"], ["freezing", "thawing"]))
def test_the_best_model_may_be_of_an_earlier_plan(tmp_path: Path, name: str, activation_cache: Any) -> None:
    model = tiny("llama", dropout=0.1)
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    made = Trainer(
        model,
        arguments(tmp_path, metric_for_best_model="loss", **options),
        schedule=schedule_for(name, model),
        activation_cache=activation_cache,
        train_dataset=rows_for(model, 16),
        eval_dataset=rows_for(model, 4),
        data_collator=collate,
    )
    losses = iter(range(100))  # every later step is worse than the first
    made.evaluate = lambda *_, **__: {"eval_loss": float(next(losses))}  # type: ignore[method-assign]
    made.train()
    assert made.state.best_global_step == 1
    expected = load_file(tmp_path / "checkpoint-1" / "delta.safetensors")
    held = trained_tensors(made.model)
    assert all(torch.equal(tensor, held[key]) for key, tensor in expected.items())
    fresh = dict(tiny("llama", dropout=0.1).named_parameters())
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in held.items() if key not in expected)


def test_a_plan_that_comes_back_leaves_a_delta_that_loads(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny("llama").save_pretrained(base)
    model = type(tiny("llama")).from_pretrained(base)
    plans = Steps({0: FREEZING[2], 2: FREEZING[0], 4: FREEZING[2]})
    arguments_ = arguments(tmp_path / "run", save_strategy="no")
    Trainer(model, arguments_, schedule=plans, train_dataset=rows_for(model, 16), data_collator=collate).train()
    save_delta(model, tmp_path / "delta")
    loaded = load(tmp_path / "delta")
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())


def test_an_earlier_checkpoint_on_the_same_trainer(tmp_path: Path) -> None:
    made = trainer(tmp_path, "freezing", save_steps=1)
    made.train()
    first = {name: tensor.clone() for name, tensor in trained_tensors(made.model).items()}
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(tensor, first[name]) for name, tensor in trained_tensors(made.model).items())


def test_reads_are_told_after_training(tmp_path: Path) -> None:
    made = trainer(tmp_path, "freezing", save_strategy="no")
    made.train()
    assert made.positions is not None
    assert isinstance(made.notices, tuple | list)
