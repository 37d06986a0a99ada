"""Runs whose strategy looks at the model, the task or a budget: what is chosen reaches the run and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cache_cases import ends_at
from frostline.checkpoints import load, merge
from frostline.core.errors import UserError
from frostline.cost import Workload, predict
from frostline.plan import Plan, document, with_difference
from frostline.records import read_record
from frostline.run import RunConfig, generate_target, plan_model, read_config, train
from frostline.strategies import STRATEGIES
from grids import slow_but
from rotating import ROTATING
from tiny_files import write_model, write_task

WAYS = [{"time": 0.4}, {"memory": 0.6}, {"memory": 0.7, "time": 0.5, "disk": "20MB"}]


def config(tmp_path: Path, **given: Any) -> RunConfig:
    model, task = tmp_path / "model", tmp_path / "days"
    if not model.exists():
        write_model(model)
        write_task(task)
    settings = {"model": str(model), "task": str(task), "out": str(tmp_path / "run"), "threads": 1, "max_steps": 8}
    settings |= {"per_device_train_batch_size": 4, "max_length": 16, "bf16": False, "learning_rate": 1e-3}
    return read_config(None, **(settings | given))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def test_a_run_that_is_told_nothing_measures_the_model(tmp_path: Path) -> None:
    record = train(config(tmp_path))
    assert record.config["strategy"] == record.plan["strategy"] == "auto"
    modes = [block["mode"] for block in record.plan["blocks"]]
    probe = json.loads(next((tmp_path / "cache" / "signals").glob("*.json")).read_text())
    gains = [gain["value"] for gain in probe["signals"]["shift_gain"]]
    cut = gains.index(max(gain for gain in gains if gain is not None)) + 1
    assert modes == ["frozen"] * min(cut, len(modes) - 1) + ["full"] * max(len(modes) - cut, 1)
    assert record.measured is not None and record.measured.selection_seconds >= probe["seconds"] > 0
    assert record.chosen is None and record.changes == ()


def first_plan(folder: Path) -> Plan:
    """The plan that a training began with, of which the changes say what differs."""
    return Plan.read(json.loads((folder / "delta.json").read_text())["first_plan"])


def test_adt_s_change_is_in_the_record(tmp_path: Path) -> None:
    record = train(config(tmp_path, strategy="adt-l50", strategy_options={"warmup_steps": 3}))
    (changed,) = record.changes
    assert changed["step"] == 3
    assert document(with_difference(first_plan(tmp_path / "run"), changed["differs"])) == record.plan
    assert record.strip[2].startswith("3") and len(record.strip) == 4 + 3
    assert sorted(block["mode"] for block in record.plan["blocks"]) == ["frozen"] * 2 + ["full"] * 2
    trained = [block["index"] for block in record.plan["blocks"] if block["mode"] == "full"]
    assert record.measured is not None and 0 < record.measured.selection_seconds <= record.measured.train_seconds
    model = load(tmp_path / "run")
    plan = Plan.read(record.plan)
    assert [index for index, block in enumerate(plan.blocks) if block.mode == "full"] == trained
    assert record.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_changes_that_never_end_are_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES._entries, "rotating", ROTATING)
    record = train(config(tmp_path, strategy="rotating", strategy_options={"every": 2}))
    assert [change["step"] for change in record.changes] == [2, 4, 6]
    plan = first_plan(tmp_path / "run")
    for change in record.changes:
        plan = with_difference(plan, change["differs"])
    assert document(plan) == record.plan
    planned = plan_model(str(tmp_path / "model"), "rotating", workload=Workload())
    assert planned.plan.strategy == "rotating"
    assert planned.notices == (
        "the plan changes while training: this is the first plan; the cost is that of all steps",
    )
    with pytest.raises(UserError, match=r"^streaming: strategy 'rotating' changes its plan while it trains"):
        train(config(tmp_path, strategy="rotating", streaming=True, out=str(tmp_path / "streamed")))


@pytest.mark.parametrize("budget", WAYS, ids=str)
@pytest.mark.parametrize("strategy", slow_but(["auto"], ["auto", "semantic"]))
def test_a_budget_is_kept_and_what_was_chosen_for_it_is_recorded(
    tmp_path: Path, strategy: str, budget: dict[str, Any]
) -> None:
    options = {"cut": 0} if strategy == "auto" else {}
    asked = config(
        tmp_path, strategy=strategy, budget=budget, strategy_options=options, num_train_epochs=3, max_steps=None
    )
    record = train(asked)
    assert record.config == asked.model_dump(mode="json")
    chosen = record.chosen
    assert chosen is not None
    assert record.plan["strategy"] == strategy
    assert strategy == "auto" or chosen["mode"] != "lora"
    assert chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"] == 4
    assert chosen["boundary"] == Plan.read(record.plan).boundary
    assert record.predicted["assumes"]["per_device_train_batch_size"] == chosen["per_device_train_batch_size"]
    assert {cost["constraint"] for cost in chosen["constraints"]} == set(budget)
    for resource in ("memory", "time"):
        if resource in budget:
            assert chosen[f"{resource}_share"] <= budget[resource]
    assert record.predicted["assumes"]["activation_cache"] == chosen["activation_cache"]


@pytest.mark.parametrize("strategy", slow_but(["lisa"], ["bot50", "lisa", "bot50+lora"]))
def test_a_strategy_trains_within_a_budget_and_goes_on_with_the_same_settings(tmp_path: Path, strategy: str) -> None:
    def asked(out: str) -> RunConfig:
        options = {"every": 2} if strategy == "lisa" else {}
        return config(
            tmp_path,
            strategy=strategy,
            budget={"memory": 0.8},
            strategy_options=options,
            out=str(tmp_path / out),
            save_steps=4,
            calibrate=True,
        )

    record = train(asked("run"))
    chosen = record.chosen
    assert chosen is not None and chosen["mode"] == "given" and chosen["memory_share"] <= 0.8
    assert chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"] == 4
    assert record.predicted["assumes"]["per_device_train_batch_size"] == chosen["per_device_train_batch_size"]
    half = tmp_path / "half"
    with pytest.MonkeyPatch.context() as stopped:
        stopped.setattr("frostline.engine.Trainer._get_grad_norm", ends_at(6))
        with pytest.raises(KeyboardInterrupt):
            train(asked("half"))
    resumed = train(asked("half"), resume=True)
    assert resumed.chosen == read_record(half).chosen and resumed.chosen is not None
    assert resumed.chosen["mode"] == "given"
    weights = [load_file(folder / "delta.safetensors") for folder in (tmp_path / "run", half)]
    assert weights[0].keys() == weights[1].keys()
    if resumed.chosen["per_device_train_batch_size"] == chosen["per_device_train_batch_size"]:
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_is_resumed_in_the_precision_that_it_began_in(tmp_path: Path) -> None:
    """Without `bf16` it is the machine's that the run began on: on a slower machine too the weights end the same."""
    places = [tmp_path / "whole", tmp_path / "half"]
    asked = [config(tmp_path, strategy="bot50", bf16=None, save_steps=4, out=str(place)) for place in places]
    with pytest.MonkeyPatch.context() as fast:
        fast.setattr("frostline.run._device.bfloat16_is_fast", lambda: True)
        assert train(asked[0]).versions["autocast"] == "bfloat16"
        fast.setattr("frostline.engine.Trainer._get_grad_norm", ends_at(6))
        with pytest.raises(KeyboardInterrupt):
            train(asked[1])
    with pytest.MonkeyPatch.context() as slow:
        for place in ("_device", "_opening"):
            slow.setattr(f"frostline.run.{place}.bfloat16_is_fast", lambda: False)
        resumed = train(asked[1], resume=True)
    assert resumed.versions["autocast"] == "bfloat16" and resumed.config["bf16"] is None
    assert any(notice.endswith("the run began in it, and goes on in it") for notice in resumed.notices)
    whole, half = (load_file(place / "delta.safetensors") for place in places)
    assert whole.keys() == half.keys() and all(torch.equal(whole[name], half[name]) for name in whole)


def test_what_the_config_says_of_the_store_holds(tmp_path: Path) -> None:
    record = train(
        config(tmp_path, budget={"time": 0.7}, strategy_options={"cut": 0}, activation_cache="off", num_train_epochs=3)
    )
    assert record.chosen is not None and not record.chosen["activation_cache"]


def test_a_budget_that_nothing_fits_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plan fits memory=1kB: use memory=") as caught:
        train(config(tmp_path, budget={"memory": "1kB"}, strategy_options={"cut": 0}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"no settings of 'bot50' fit time=0\.1: use time="):
        train(config(tmp_path, strategy="bot50", budget={"time": 0.1}))
    with pytest.raises(UserError, match="needs the speed of this machine"):
        train(config(tmp_path, budget={"time": "20s"}, strategy_options={"cut": 0}))


def test_a_plan_for_a_budget_of_seconds_is_calibrated(tmp_path: Path) -> None:
    run = config(tmp_path)
    planned = plan_model(
        run.model,
        "auto",
        workload=Workload(rows=40, length=16, per_device_train_batch_size=4, num_train_epochs=3),
        task=run.task,
        options={"cut": 0},
        budget=run.budget.model_validate({"time": "10min"}),
        calibrated=True,
    )
    assert planned.choice is not None
    seconds = planned.prediction.run_seconds
    assert seconds is not None and 0 < seconds < 600
    assert planned.document()["predicted"]["time_ratio"] is not None
    assert planned.document()["chosen"]["constraints"][0]["constraint"] == "time"
    assert list((tmp_path / "cache" / "speed").glob("*.json"))
    assert planned.prediction.memory == predict(planned.plan, planned.anatomy, planned.choice.workload).memory


def test_residual_interaction_from_training_to_use(tmp_path: Path) -> None:
    options = {"alpha": 0.2, "loss_weights": [0.5, 0.0, 0.0, 1.0], "low": 0, "middle": 1}
    wanted = config(tmp_path, strategy="hierarchical", strategy_options=options)
    record = train(wanted)
    assert record.plan["forward"] == {"loss_weights": [0.5, 0.0, 0.0, 1.0], "residual": {"alpha": 0.2, "span": 1}}
    assert read_record(wanted.folder).status == "finished"
    with pytest.raises(UserError, match="its blocks add earlier states"):
        merge(wanted.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    if record.data.kind != "classification":
        generate_target(str(wanted.folder), ["the day"], max_new_tokens=3)
