"""Strategies whose plan moves, against a slow loop of plain PyTorch that makes a new optimizer at each change."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainingArguments

import cache_cases
import frostline as fl
from architectures import tiny
from cache_cases import StopAt, collate, rows_for
from frostline.anatomy import Anatomy, find_anatomy
from frostline.checkpoints import trained_tensors
from frostline.core.errors import ConfigError
from frostline.engine import Trainer
from frostline.plan import phases
from frostline.run import make_schedule
from frostline.strategies._predictor import features, trained_predictor
from grids import grid, slow_but

STEPS, BLOCKS = 40, 12
OPTIONS: dict[str, dict[str, Any]] = {
    "lisa": {"every": 7},
    "badam": {"every": 6},
    "freezeout": {"start": 0.5},
    "autofreeze": {"decisions": 12},
    "gradual": {"groups": 5},
    "egeria": {"decisions": 20, "window": 1, "refresh": 2, "tolerance": 0.9},
    "smartfrz": {},
}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "optim": TrainingArguments.default_optim,
        "lr_scheduler_type": "linear",
        "remove_unused_columns": False,
    }
    return cache_cases.arguments(folder, **given | options)


def trainer(
    folder: Path, name: str, architecture: str = "llama", cache: str = "auto", kept: bool = False, **options: Any
) -> Trainer:
    model = tiny(architecture, dropout=0.0, num_hidden_layers=BLOCKS)
    schedule = make_schedule(model, name, steps=STEPS, options=OPTIONS[name])
    rows = rows_for(model, 16)
    return Trainer(
        model,
        arguments(folder, **options),
        schedule=schedule,
        train_dataset=rows,
        data_collator=collate,
        activation_cache=cache,  # type: ignore[arg-type]
        keep_left_state=kept,
    )


@dataclass
class Reference:
    """A plain loop. `trains(step, sums)` names what trains from a step on; `rate(step, name)` is its rate's share."""

    model: nn.Module
    optim: str
    trains: Callable[[int, dict[str, torch.Tensor]], frozenset[str]]
    rate: Callable[[int, str], float]
    learning_rate: float

    def run(self, batches: list[dict[str, torch.Tensor]]) -> list[float]:
        found, known = [], dict[str, dict[str, Any]]()
        sums: dict[str, torch.Tensor] = {}
        optimizer: torch.optim.Optimizer | None = None
        before: frozenset[str] = frozenset()
        named = dict(self.model.named_parameters())
        for step, batch in enumerate(batches):
            names = self.trains(step, sums)
            if names != before:
                if optimizer is not None:
                    known = {n: optimizer.state[named[n]] for n in before & names if named[n] in optimizer.state}
                for name, parameter in named.items():
                    parameter.requires_grad_(name in names)
                    parameter.grad = None
                groups = [{"params": [named[name]], "name": name, "weight_decay": 0.0} for name in sorted(names)]
                kind = torch.optim.SGD if self.optim == "sgd" else torch.optim.AdamW
                optimizer = kind(groups, lr=self.learning_rate)
                for name, state in known.items():
                    optimizer.state[named[name]] = state
                sums = {name: torch.zeros_like(named[name]) for name in names}
                before = names
            assert optimizer is not None
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self.rate(step, group["name"])
            loss = self.model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([named[name] for name in names], 1.0)
            for name in names:
                if named[name].grad is not None:
                    sums[name] += named[name].grad
            optimizer.step()
            found.append(float(loss.detach()))
        return found


def of_timetable(made: Trainer) -> Callable[[int, dict[str, torch.Tensor]], frozenset[str]]:
    """What trains by the plans that are known before training, as names."""
    anatomy = made.applied.anatomy
    plans = phases(made.schedule, STEPS)
    heads = {tensor.name for tensor in anatomy.head} - {tensor.name for tensor in anatomy.embeddings}

    def names(step: int, sums: Any) -> frozenset[str]:
        plan = [plan for at, plan in plans if at <= step][-1]
        parts = [(plan.embeddings, anatomy.embeddings), (plan.final_norm, anatomy.final_norm)]
        parts += [(mode, block.tensors) for mode, block in zip(plan.blocks, anatomy.blocks, strict=True)]
        found = {tensor.name for mode, tensors in parts for tensor in tensors if mode.mode == "full"}
        return frozenset(found | (heads if plan.head.mode == "full" else set()))

    return names


def of_autofreeze(made: Trainer) -> Callable[[int, dict[str, torch.Tensor]], frozenset[str]]:
    """AutoFreeze's rule, written out again."""
    anatomy: Anatomy = made.applied.anatomy
    decided = [round(STEPS * i / 13) for i in range(1, 13)]
    everything = of_timetable(made)(0, {})
    state: dict[str, Any] = {"frozen": 0, "norms": None}

    def names(step: int, sums: dict[str, torch.Tensor]) -> frozenset[str]:
        if step in decided and state["frozen"] < len(anatomy.blocks) - 1:
            norms = [sum(sums[t.name].abs().sum().item() for t in b.tensors if t.name in sums) for b in anatomy.blocks]
            if state["norms"] is not None:
                pairs = list(zip(state["norms"], norms, strict=True))[state["frozen"] :]
                ratios = [abs(old - new) / old for old, new in pairs]
                bound = np.percentile(ratios, 50)
                state["frozen"] += next(i for i, ratio in enumerate(ratios) if ratio >= bound)
            state["norms"] = norms
            for total in sums.values():
                total.zero_()
        frozen = {t.name for block in anatomy.blocks[: state["frozen"]] for t in block.tensors}
        return everything - frozen

    return names


def of_egeria(made: Trainer, model: nn.Module, batches: list[Any]) -> Callable[[int, Any], frozenset[str]]:
    """Egeria's rule, written out again, with whole models in the place of hidden states that are kept."""
    blocks = made.applied.anatomy.blocks
    decided = sorted({round(STEPS * i / 21) for i in range(1, 21)})
    everything = of_timetable(made)(0, {})
    state: dict[str, Any] = {"frozen": 0, "values": [], "steepest": 0.0, "highest": 0.0, "reference": None}

    def int8(block: nn.Module) -> nn.Module:
        copied = copy.deepcopy(block)
        for parameter in copied.parameters():
            if parameter.dim() == 2:
                scale = parameter.data.abs().max(dim=1, keepdim=True).values / 127
                parameter.data = torch.round(parameter.data / scale.clamp(min=1e-30)).clamp(-127, 127) * scale
        return copied

    def outputs(batch: Any, block: nn.Module | None = None) -> torch.Tensor:
        """The normed similarities of rows in the lowest trained block's outputs, of the model or with another block."""
        whole = copy.deepcopy(model).eval()
        name = blocks[state["frozen"]].name
        if block is not None:
            path, _, last = name.rpartition(".")
            whole.get_submodule(path)[int(last)] = copy.deepcopy(block).eval()  # type: ignore[operator]
        with torch.no_grad():
            hidden = whole(**batch, output_hidden_states=True).hidden_states[state["frozen"] + 1]
        rows = (hidden * batch["attention_mask"].unsqueeze(-1)).reshape(len(hidden), -1)
        similar = rows @ rows.T
        return similar / similar.norm(dim=1, keepdim=True)

    def block() -> nn.Module:
        return model.get_submodule(blocks[state["frozen"]].name)

    def freeze(frozen: int) -> None:
        state.update(frozen=frozen, values=[], steepest=0.0, readings=0)
        state["reference"] = int8(block())

    def names(step: int, sums: Any) -> frozenset[str]:
        if step == 0:
            freeze(0)
        if step in decided:
            rate = linear(step, "")
            if rate <= state["highest"] / 10:
                state["highest"] = rate
                freeze(0)
            else:
                state["highest"] = max(rate, state["highest"])
                batch = batches[step]
                difference = outputs(batch) - outputs(batch, state["reference"])
                state["values"].append(difference.square().sum().item() / len(difference) ** 2)
                state["readings"] += 1
                if state["readings"] % 2 == 0:
                    state["reference"] = int8(block())
                if len(state["values"]) > 1:
                    slope = abs(state["values"][-1] - state["values"][-2])
                    state["steepest"] = max(slope, state["steepest"])
                    if slope <= 0.9 * state["steepest"] and state["frozen"] < len(blocks) - 1:
                        freeze(state["frozen"] + 1)
        frozen = {t.name for block in blocks[: state["frozen"]] for t in block.tensors}
        return everything - frozen

    return names


def of_smartfrz(made: Trainer, model: nn.Module) -> Callable[[int, Any], frozenset[str]]:
    """SmartFRZ's rule, written out again, with the same predictor."""
    blocks = made.applied.anatomy.blocks
    decided = [round(STEPS * i / 20) for i in range(1, 20)]
    everything = of_timetable(made)(0, {})
    kept: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {"frozen": 0, "motion": [], "rates": []}

    def moved(block: Any) -> float:
        change = size = 0.0
        for tensor in block.tensors:
            now = model.get_parameter(tensor.name).detach().reshape(-1)[:: (tensor_size(tensor) // 1024) | 1]
            change += (now - kept[tensor.name]).pow(2).sum().item()
            size += now.pow(2).sum().item()
            kept[tensor.name] = now.clone()
        return float(math.sqrt(change / size))

    def tensor_size(tensor: Any) -> int:
        return model.get_parameter(tensor.name).numel()

    def names(step: int, sums: Any) -> frozenset[str]:
        if step == 0:
            for tensor in (tensor for block in blocks for tensor in block.tensors):
                own = model.get_parameter(tensor.name).detach().reshape(-1)
                kept[tensor.name] = own[:: (tensor_size(tensor) // 1024) | 1].clone()
        if step in decided and state["frozen"] < len(blocks) - 1:
            state["motion"].append([moved(b) if b.index >= state["frozen"] else 0.0 for b in blocks])
            state["rates"].append(linear(step, ""))
            while state["frozen"] < len(blocks) - 1:
                read = features(state["motion"], state["rates"], state["frozen"], step / STEPS)
                if trained_predictor()(*read).item() < 0:
                    break
                state["frozen"] += 1
        return everything - {t.name for block in blocks[: state["frozen"]] for t in block.tensors}

    return names


def linear(step: int, name: str) -> float:
    return 1 - step / STEPS


def of_freezeout(anatomy: Anatomy) -> Callable[[int, str], float]:
    def rate(step: int, name: str) -> float:
        block = next((b.index for b in anatomy.blocks if name.startswith(f"{b.name}.")), None)
        end = 1.0 if block is None else (0.5 + 0.5 * block / (len(anatomy.blocks) - anatomy.tied)) ** 3
        if step > end * STEPS:
            return 0.0
        return 1 / (2 * end) * (1 + math.cos(math.pi * step / (end * STEPS)))

    return rate


def of_gradual(anatomy: Anatomy) -> Callable[[int, str], float]:
    def rate(step: int, name: str) -> float:
        block = next((b.index for b in anatomy.blocks if name.startswith(f"{b.name}.")), None)
        depth = 0 if block is None else len(anatomy.blocks) - 1 - block
        return linear(step, name) / 2.6**depth

    return rate


@pytest.mark.parametrize(
    ("name", "architecture", "cache", "optim"),
    slow_but(
        [
            ("lisa", "llama", "auto", "sgd"),
            ("autofreeze", "llama", "off", "adamw_torch"),
            ("gradual", "bert", "auto", "sgd"),
            ("egeria", "gpt2", "off", "adamw_torch"),
        ],
        grid([*OPTIONS], ["llama", "bert", "gpt2"], ["auto", "off"], ["sgd", "adamw_torch"]),
    ),
)
def test_the_losses_are_those_of_a_plain_loop(
    tmp_path: Path, own_cache: None, name: str, architecture: str, cache: str, optim: str
) -> None:
    rate = 0.05 if optim == "sgd" else 1e-3
    made = trainer(tmp_path, name, architecture, cache, optim=optim, learning_rate=rate)
    start, batches, found = copy.deepcopy(made.model), list[Any](), list[float]()
    made.training_step = _noting(made, batches, found)  # type: ignore[method-assign]
    made.train()
    assert len(batches) == STEPS
    assert len(made.changes) >= {"autofreeze": 2, "smartfrz": 1}.get(name, 4)
    anatomy = find_anatomy(tiny(architecture, num_hidden_layers=BLOCKS))
    shares: dict[str, Any] = {"freezeout": of_freezeout(anatomy), "gradual": of_gradual(anatomy)}
    trains = of_autofreeze(made) if name == "autofreeze" else of_timetable(made)
    if name == "egeria":
        trains = of_egeria(made, start, batches)
    if name == "smartfrz":
        trains = of_smartfrz(made, start)
    plain = Reference(start, optim, trains, shares.get(name, linear), rate).run(batches)
    assert found == pytest.approx(plain, rel=1e-5 if optim == "sgd" else 1e-3)


def _noting(made: Trainer, batches: list[Any], losses: list[float]) -> Any:
    own = made.training_step

    def training_step(model: Any, inputs: Any, *given: Any, **options: Any) -> Any:
        batches.append({key: value.clone() for key, value in inputs.items()})
        loss = own(model, inputs, *given, **options)
        losses.append(float(loss))
        return loss

    return training_step


TWO_PROCESSES = """
    import os, sys
    from pathlib import Path
    import torch
    from cache_cases import StopAt
    from frostline.checkpoints import trained_tensors
    from test_moving_plans import trainer

    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    os.environ["FROSTLINE_CACHE"] = str(folder / "cache of two")
    half = {"per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.05}
    for name in names:
        whole = trainer(folder / f"{name} whole", name, **half)
        whole.train()
        killed = trainer(folder / f"{name} killed", name, save_strategy="steps", save_steps=9, **half)
        killed.add_callback(StopAt(22))
        try:
            killed.train()
        except KeyboardInterrupt:
            pass
        resumed = trainer(folder / f"{name} killed", name, save_strategy="steps", save_steps=9, **half)
        resumed.train(resume_from_checkpoint=True)
        expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
        assert [change.step for change in resumed.changes] == [change.step for change in whole.changes]
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected), name
        torch.save(expected, folder / f"{name} {whole.args.process_index}.pt")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [["lisa", "freezeout"], ["badam", "gradual", "autofreeze"], ["egeria", "smartfrz"]])
def test_two_processes_train_as_one_and_are_resumed(tmp_path: Path, own_cache: None, names: list[str]) -> None:
    script, tests = tmp_path / "train.py", Path(__file__).resolve().parents[1]
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    found = os.pathsep.join([str(tests), str(tests / "engine"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path), *names], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-9000:]
    for name in names:
        one = trainer(tmp_path / name, name, optim="sgd", learning_rate=0.05)
        start = {key: tensor.detach().clone() for key, tensor in one.model.named_parameters()}
        one.train()
        first, second = (torch.load(tmp_path / f"{name} {rank}.pt") for rank in range(2))
        for key, tensor in trained_tensors(one.model).items():
            assert torch.equal(first[key], second[key]), f"{name}: {key} differs between the processes"
            moved = (tensor - start[key]).norm()
            if name != "egeria":  # which measures the batch of the first process, here half of that of one alone
                assert (tensor - first[key]).norm() <= 1e-3 * moved, f"{name}: {key}"


def assert_same_training(whole: Trainer, resumed: Trainer) -> None:
    """The same weights, bit for bit, by the same changes of the plan."""
    expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert [change.document()["differs"] for change in resumed.changes] == [
        change.document()["differs"] for change in whole.changes
    ]


@pytest.mark.parametrize(
    ("name", "stop", "kept"),
    slow_but([("lisa", 6, False), ("egeria", 13, True)], grid([*OPTIONS], [6, 13, 22, 31], [False, True])),
)
def test_killed_at_any_step_and_resumed_is_never_killed(
    tmp_path: Path, own_cache: None, name: str, stop: int, kept: bool
) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "kept": kept}
    whole = trainer(tmp_path / "whole", name, **saving)
    whole.train()
    killed = trainer(tmp_path / "killed", name, **saving)
    killed.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", name, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_same_training(whole, resumed)


def test_state_that_is_kept_is_that_of_before(tmp_path: Path) -> None:
    """Each block of BAdam trains a second time: with its state, or anew."""
    found = {}
    for kept in (False, True):
        made = trainer(tmp_path / str(kept), "lisa", kept=kept)
        made.train()
        held = {parameter for group in made.optimizer.param_groups for parameter in group["params"]}
        counts = {int(made._bare_optimizer().state[parameter]["step"]) for parameter in held}
        assert set(made._bare_optimizer().state) == held  # nothing of what left
        found[kept] = counts
    assert found[False] == {5, 40} and max(found[True] - {40}) > 5


@pytest.mark.parametrize("name", slow_but(["autofreeze"], ["lisa", "badam", "autofreeze", "gradual"]))
def test_attached_to_a_plain_trainer(tmp_path: Path, own_cache: None, name: str) -> None:
    own = trainer(tmp_path / "own", name, optim="sgd", learning_rate=0.05)
    found: dict[str, list[float]] = {"own": [], "attached": []}
    own.training_step = _noting(own, [], found["own"])  # type: ignore[method-assign]
    own.train()
    model = tiny("llama", dropout=0.0, num_hidden_layers=BLOCKS)
    args = arguments(tmp_path / "attached", optim="sgd", learning_rate=0.05)
    plain = transformers.Trainer(model, args, train_dataset=rows_for(model, 16), data_collator=collate)
    schedule = make_schedule(model, name, steps=STEPS, options=OPTIONS[name])
    attached = fl.attach(plain, schedule=schedule)
    attached.training_step = _noting(attached, [], found["attached"])  # type: ignore[arg-type]
    attached.train()
    assert found["attached"] == pytest.approx(found["own"], rel=1e-5)


def test_rates_of_a_schedule_need_the_own_trainer(tmp_path: Path) -> None:
    model = tiny("llama", dropout=0.0)
    plain = transformers.Trainer(model, arguments(tmp_path), train_dataset=rows_for(model, 16), data_collator=collate)
    with pytest.raises(ConfigError, match="'freezeout' sets the learning rates itself"):
        fl.attach(plain, schedule="freezeout")


@pytest.mark.parametrize("name", slow_but(["gradual"], ["lisa", "freezeout", "gradual"]))
@pytest.mark.parametrize("dtype", slow_but([torch.float32], [torch.float32, torch.bfloat16]))
def test_the_best_model_is_loaded_from_an_earlier_plan(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """The last steps go wrong, so that the best checkpoint is one of a plan before."""
    model = tiny("llama", dropout=0.0, num_hidden_layers=BLOCKS).to(dtype)
    rows, evaluation = rows_for(model, 16), {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}
    args = arguments(
        tmp_path, load_best_model_at_end=True, save_strategy="steps", learning_rate=3e-2, optim="sgd", **evaluation
    )
    schedule = make_schedule(model, name, steps=STEPS, options=OPTIONS[name])
    given: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows[:8], "data_collator": collate}
    made = Trainer(model, args, schedule=schedule, **given)
    values: dict[int, dict[str, torch.Tensor]] = {}

    class Look(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            values[state.global_step] = {key: p.detach().clone() for key, p in made.model.named_parameters()}

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 27:
                with torch.no_grad():
                    made.model.get_parameter("model.norm.weight").mul_(-30)

    made.add_callback(Look())
    made.train()
    best = made.state.best_global_step
    assert best is not None and best < 30
    for key, parameter in made.model.named_parameters():
        assert torch.equal(parameter.to(values[best][key].dtype), values[best][key]), key


@pytest.mark.parametrize("name", slow_but(["lisa", "autofreeze"], OPTIONS))
def test_a_cache_that_was_asked_for_never_ends_a_training_on_its_way(tmp_path: Path, name: str) -> None:
    """The last plans of a schedule may freeze nothing below them, also where a training is resumed there."""
    whole = trainer(tmp_path / "whole", name, cache="on", save_strategy="steps", save_steps=36)
    whole.train()
    resumed = trainer(tmp_path / "whole", name, cache="on", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-36"))
    after = dict(resumed.model.named_parameters())
    for key, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, after[key]), key
