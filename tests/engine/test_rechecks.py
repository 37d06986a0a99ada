"""What was the same training before the first step may not be later: it is compared again, and given up."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback

from cache_cases import arguments
from frostline.engine import Trainer
from frostline.hooks import Rechecks
from frostline.run import make_plan
from heads import collate, model_of, rows_of


class Later(TrainerCallback):
    """Does something to the model before a step."""

    def __init__(self, step: int, change: Any) -> None:
        self.step, self.change = step, change

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.now = state.global_step
        if state.global_step == self.step:
            self.change(model)


def with_extra_loss(model: Any) -> Any:
    """The model's own forward adds to its loss what the bottom computes, times a weight that starts at 0."""
    model.weight = 0.0
    own = type(model).forward

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        read: list[torch.Tensor] = []
        if self.weight:
            kwargs["output_hidden_states"] = True
        output = own(self, *args, **kwargs)
        if self.weight and output.loss is not None:
            read = [state.pow(2).mean() for state in output.hidden_states]
            output.loss = output.loss + self.weight * torch.stack(read).sum()
        return output

    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
    return model


def trained(tmp_path: Path, ours: bool, change: Any, head: str = "classes", step: int = 2, **options: Any) -> Any:
    model = with_extra_loss(model_of("bert" if head == "classes" else "llama", head))
    args = arguments(
        tmp_path, max_steps=10, per_device_train_batch_size=2, logging_steps=1, learning_rate=0.1, optim="sgd"
    )
    given: dict[str, Any] = {"train_dataset": rows_of(head), "data_collator": collate}
    given["callbacks"] = [change if isinstance(change, Later) else Later(step, change)]
    trainer: Any
    if ours:
        trainer = Trainer(model, args, plan=make_plan(model, "bot50"), activation_cache="on", **given, **options)
    else:
        applied = Trainer(model, args, plan=make_plan(model, "bot50"), activation_cache="off", **given)
        trainable = {name for name, parameter in applied.model.named_parameters() if parameter.requires_grad}
        model = with_extra_loss(model_of("bert" if head == "classes" else "llama", head))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        trainer = transformers.Trainer(model, args, **given)
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("head", ["classes", "causal"])
def test_a_loss_that_grows_by_the_bottom_s_states(tmp_path: Path, head: str) -> None:
    def weigh(model: Any) -> None:
        model.weight = 0.1

    ours, plain = (trained(tmp_path, some, weigh, head) for some in (True, False))
    assert ours.cache_report.used
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("head", ["classes", "causal"])
def test_a_forward_that_the_class_gets_later(tmp_path: Path, head: str) -> None:
    def scale(model: Any) -> None:
        own = type(model).forward

        @functools.wraps(own)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = own(self, *args, **kwargs)
            output.loss = 1.5 * output.loss
            return output

        model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})

    ours, plain = (trained(tmp_path, some, scale, head, step=3) for some in (True, False))
    assert ours.cache_report.used and ours.session.report.given_up == ""
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("head", ["classes", "causal"])
def test_a_config_that_asks_for_hidden_states_later(tmp_path: Path, head: str) -> None:
    seen: dict[bool, list[float]] = {True: [], False: []}

    def ask(model: Any, ours: bool) -> None:
        def note(module: Any, given: Any, output: Any) -> None:
            seen[ours].append(sum(float(state.detach().norm()) for state in output.hidden_states))

        model.config.output_hidden_states = True
        model.register_forward_hook(note)

    ours, plain = (
        trained(tmp_path, some, functools.partial(ask, ours=some), head, step=3, loss_positions=False)
        for some in (True, False)
    )
    assert ours.cache_report.used and not ours.notices[1:]
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)
    assert len(seen[False]) == 7
    assert [value for value in seen[True] if value == pytest.approx(seen[False][0], rel=1e-4)]
    assert seen[True][-1] == pytest.approx(seen[False][-1], rel=1e-4)


def test_a_change_before_the_last_step_is_found_too(tmp_path: Path) -> None:
    def weigh(model: Any) -> None:
        model.weight = 0.1

    trainer = trained(tmp_path, True, weigh, step=9)
    assert any("Results since step" in notice for notice in trainer.notices)


class ByEpoch(torch.utils.data.Dataset[Any]):
    """Rows that are others in every epoch."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.epoch = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        return row | {"input_ids": [(token + self.epoch) % 97 + 3 for token in row["input_ids"]]}


class Epochs(TrainerCallback):
    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        train_dataloader.dataset.epoch = round(state.epoch)


@pytest.mark.parametrize("head", ["classes", "causal"])
def test_rows_that_are_others_in_every_epoch(tmp_path: Path, head: str) -> None:
    def run(mode: Any) -> Trainer:
        model = model_of("bert" if head == "classes" else "llama", head)
        args = arguments(tmp_path, max_steps=10, per_device_train_batch_size=3, logging_steps=1)
        given: dict[str, Any] = {"train_dataset": ByEpoch(rows_of(head)), "data_collator": collate}
        trainer = Trainer(
            model, args, plan=make_plan(model, "bot50"), activation_cache=mode, callbacks=[Epochs()], **given
        )
        trainer.train()
        return trainer

    ours, off = run("on"), run("off")
    assert ours.cache_report.used and "rows that are not in the activation cache" in " ".join(ours.notices)
    assert losses(ours) == pytest.approx(losses(off), rel=1e-4)


def test_a_hook_below_the_boundary_that_comes_later_runs(tmp_path: Path) -> None:
    seen: set[int] = set()

    def put(model: Any) -> None:
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: seen.add(later.now))

    later = Later(3, put)
    trainer = trained(tmp_path, True, later)
    assert seen == set(range(3, 10))
    assert trainer.cache_report.used and not trainer.session.active
    assert [notice for notice in trainer.notices if "off since step 3" in notice]


def test_a_hook_below_the_boundary_declines_the_cache(tmp_path: Path) -> None:
    model = model_of("bert", "classes")
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
    args = arguments(tmp_path, max_steps=1)
    given: dict[str, Any] = {"train_dataset": rows_of("classes"), "data_collator": collate}
    trainer = Trainer(model, args, plan=make_plan(model, "bot50"), **given)
    trainer.train()
    assert not trainer.cache_report.used and "forward hook" in trainer.cache_report.reason


def test_a_hook_on_the_head_sees_every_position(tmp_path: Path) -> None:
    model = model_of("llama", "causal")
    shapes = []
    model.lm_head.register_forward_hook(lambda module, given, output: shapes.append(output.shape))
    args = arguments(tmp_path, max_steps=2, per_device_train_batch_size=4)
    given: dict[str, Any] = {"train_dataset": rows_of("causal"), "data_collator": collate}
    trainer = Trainer(model, args, plan=make_plan(model, "bot50"), **given)
    trainer.train()
    assert all(shape[0] * shape[1] >= 4 * 5 for shape in shapes[-2:])
    assert any("forward hook on lm_head" in notice for notice in trainer.notices)


def test_an_overridden_compute_loss_reads_all_logits(tmp_path: Path) -> None:
    class Reads(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
            output = model(**inputs)
            assert output.logits.shape[:2] == inputs["input_ids"].shape
            return (output.loss, output) if return_outputs else output.loss

    model = model_of("llama", "causal")
    args = arguments(tmp_path, max_steps=2, per_device_train_batch_size=4)
    given: dict[str, Any] = {"train_dataset": rows_of("causal"), "data_collator": collate}
    trainer = Reads(model, args, plan=make_plan(model, "bot50"), **given)
    trainer.train()
    assert any("a loss of your own" in notice for notice in trainer.notices)


def test_when_a_check_is_due() -> None:
    checks = Rechecks(torch.nn.Linear(1, 1))
    due = [step for step in range(40) if checks.due(step, 1.0)]
    assert due == [2, 4, 8, 16, 32]
    checks.seconds = 1.0
    assert [step for step in range(40) if checks.due(step, 1.0)] == [2, 4]
    assert checks.due(32, 100.0)
    linear = checks._modules[0]
    linear.register_forward_hook(lambda *_: None)
    assert checks.due(7, 1.0)
    with checks.timed():
        pass
    assert not checks.due(7, 1.0)
