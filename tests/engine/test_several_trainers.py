"""`fl.Trainer` and `fl.attach` on two and four processes (gloo): the training of one process, saved and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cache_cases
import frostline as fl
from architectures import tiny
from cache_cases import collate, rows_for
from frostline.checkpoints import load_delta, trained_tensors
from frostline.core.errors import CheckpointError
from several import script_in_processes

STEPS = 6
ROWS = 20
EVALUATED = 7
"""Of 2 rows a batch: on two processes the last round has one batch, of one row."""


@dataclass(frozen=True)
class Case:
    """A training: a strategy on a tiny model.

    Attributes:
        strategy: its name.
        options: of the strategy.
        architecture: of the model.
        cache: the activation cache's mode.
        attached: by `fl.attach`.
        packed: rows without padding in one sequence.
        given: more training arguments.
        exact: it is the step of one batch; without this a notice says that it is not.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = "llama"
    cache: str = "auto"
    attached: bool = False
    packed: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


CASES: dict[str, Case] = {
    "bot50, cache on": Case("bot50", cache="on"),
    "bot50, cache off": Case("bot50", cache="off"),
    "all, bert": Case("all", architecture="bert"),
    "lora": Case("lora", {"dropout": 0.0}),
    "bot50+lora, cache on": Case("bot50+lora", {"lora": {"dropout": 0.0}}, cache="on"),
    "hlpt": Case("hlpt"),
    "hierarchical": Case("hierarchical"),
    "semantic, bert": Case("semantic", architecture="bert"),
    "mixlora": Case("mixlora", {"dropout": 0.0}, exact=False),
    "mixlora without balance": Case("mixlora", {"dropout": 0.0, "balance": 0.0}),
    "lisa": Case("lisa", {"every": 2}),
    "freezeout": Case("freezeout", {"start": 0.5}),
    "layerdrop": Case("layerdrop", {"p": 0.5}),
    "adalora": Case("adalora"),
    "unipelt": Case("unipelt"),
    "packing": Case("bot50", packed=True),
    "accumulation": Case("bot50", given={"gradient_accumulation_steps": 2}),
    "attach bot50, cache on": Case("bot50", attached=True, cache="on"),
    "attach lora": Case("lora", {"dropout": 0.0}, attached=True),
    "attach lisa": Case("lisa", {"every": 2}, attached=True),
}


def trainer_of(folder: Path, name: str, rows: int, dropout: float = 0.0, **more: Any) -> Any:
    """The trainer of a case with so many rows in a batch of a process."""
    case = CASES[name]
    model = tiny(case.architecture, dropout=dropout)
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "remove_unused_columns": False,
        **case.given,
        **more,
    }
    arguments, data = cache_cases.arguments(folder, **given), rows_for(model, ROWS)
    schedule = fl.make_schedule(
        model, case.strategy, steps=STEPS, data=data, data_collator=collate, options=case.options or None
    )
    own: dict[str, Any] = {
        "train_dataset": data,
        "eval_dataset": rows_for(model, EVALUATED, seed=2),
        "data_collator": collate,
    }
    if case.attached:
        plain = transformers.Trainer(model, arguments, **own)
        return fl.attach(plain, schedule=schedule, activation_cache=case.cache)
    made = fl.Trainer(model, arguments, schedule=schedule, activation_cache=case.cache, **own)
    if case.packed:
        from frostline.loss_positions import pack_rows
        from frostline.tasks import PackingCollator

        made.data_collator = PackingCollator()
        pack_rows(made.model, data, made.data_collator)
    return made


def found_in(trainer: Any) -> dict[str, Any]:
    """What a training came to."""
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "weights": {k: v.detach().clone() for k, v in trained_tensors(trainer.model).items()},
        "notices": trainer.notices,
        "cached": trainer.cache_report.used,
    }


SAME = """
    import json, sys
    from pathlib import Path
    import torch
    from test_several_trainers import CASES, found_in, trainer_of

    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2].split("|")
    for name in names:
        trainer = trainer_of(folder / name, name, 4 // int(sys.argv[3]))
        trainer.train()
        found = found_in(trainer)
        found["evaluated"] = trainer.evaluate()["eval_loss"]
        saved = folder / f"{name} saved"
        if not CASES[name].attached:
            trainer.save_model(str(saved))
        torch.save(found, folder / f"{name} {trainer.args.process_index}.pt")
    torch.distributed.destroy_process_group()
"""


def assert_same_as_one(tmp_path: Path, names: list[str], count: int) -> None:
    script_in_processes(SAME, tmp_path, "|".join(names), str(count), count=count, seconds=400)
    for name in names:
        case = CASES[name]
        several = [torch.load(tmp_path / f"{name} {rank}.pt") for rank in range(count)]
        one = trainer_of(tmp_path / f"{name} alone", name, 4)
        one.train()
        alone = found_in(one)
        for own in several[1:]:
            assert own["losses"] == several[0]["losses"] or case.attached, name
            assert all(torch.equal(tensor, own["weights"][key]) for key, tensor in several[0]["weights"].items()), name
        mean_over_parts = any("mean over" in line for line in several[0]["notices"])
        assert mean_over_parts is not case.exact, (name, several[0]["notices"])
        near = 1e-5 if case.exact else 2e-3
        assert several[0]["losses"] == pytest.approx(alone["losses"], abs=near), name
        assert (several[0]["cached"], several[0]["weights"].keys()) == (alone["cached"], alone["weights"].keys()), name
        for key, tensor in alone["weights"].items():
            torch.testing.assert_close(
                several[0]["weights"][key], tensor, atol=near, rtol=0, msg=lambda text, n=name, k=key: f"{n} {k} {text}"
            )
        if not case.attached:  # whose evaluation is that of transformers
            if not case.packed:  # rows of one sequence that fill the last round up cannot be taken out
                evaluated = one.evaluate()["eval_loss"]
                assert several[0]["evaluated"] == pytest.approx(evaluated, abs=1e-5), name
            if case.strategy != "lisa":
                again = trainer_of(tmp_path / "again", name, 4)
                load_delta(again.model, tmp_path / f"{name} saved")
                got = trained_tensors(again.model)
                assert all(torch.equal(got[key], tensor) for key, tensor in several[0]["weights"].items()), name


FEW = ["bot50+lora, cache on", "lisa", "mixlora"]


def test_two_processes_train_and_save_as_one(tmp_path: Path) -> None:
    assert_same_as_one(tmp_path, FEW, 2)


@pytest.mark.slow
def test_two_processes_train_and_save_as_one_by_all_strategies(tmp_path: Path) -> None:
    assert_same_as_one(tmp_path, [name for name in CASES if name not in FEW], 2)


@pytest.mark.slow
def test_four_processes_train_and_save_as_one(tmp_path: Path) -> None:
    assert_same_as_one(tmp_path, ["bot50, cache on", "lora", "freezeout"], 4)


RESUMED = """
    import sys
    from pathlib import Path
    import torch
    from cache_cases import StopAt
    from frostline.checkpoints import trained_tensors
    from test_several_trainers import trainer_of

    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2].split("|")
    saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
    for name in names:
        whole = trainer_of(folder / f"{name} whole", name, 2, 0.2, **saving)
        whole.train()
        if whole.args.process_index:  # what was drawn by the end differs between the processes
            torch.rand(3)
        killed = trainer_of(folder / f"{name} killed", name, 2, 0.2, **saving)
        killed.add_callback(StopAt(5))
        try:
            killed.train()
        except KeyboardInterrupt:
            pass
        torch.manual_seed(whole.args.process_index)
        resumed = trainer_of(folder / f"{name} killed", name, 2, 0.2, **saving)
        resumed.train(resume_from_checkpoint=True)
        expected, got = trained_tensors(whole.model), trained_tensors(resumed.model)
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected), name
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_resumed_exactly_with_dropout(tmp_path: Path) -> None:
    script_in_processes(RESUMED, tmp_path, "all, bert|bot50, cache on|bot50+lora, cache on|mixlora|lisa", seconds=400)
    folder = tmp_path / "all, bert killed" / "checkpoint-4"
    assert {path.name for path in folder.glob("rng_*")} == {"rng_0.json", "rng_1.json"}
    alone = trainer_of(tmp_path / "all, bert killed", "all, bert", 4, 0.2)
    with pytest.raises(CheckpointError, match=r"saved by 2 processes, and these are 1.*use 2 processes"):
        alone.train(resume_from_checkpoint=str(folder))
