"""A run whose training is split: record, delta, evaluation, what `resume` does, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_training import config

from frostline.checkpoints import load, read_card
from frostline.core.errors import UserError
from frostline.records import RECORD_FILE, read_record, write_record
from frostline.run import RunConfig, evaluate_target, train
from frostline.run.demo import MODEL_DIR

SPLIT = "strategy=splitlora", "strategy_options.clients=2", "strategy_options.average_every=2", "steps=3"


def split_config(tmp_path: Path, *overrides: str) -> RunConfig:
    return config(tmp_path, *SPLIT, *overrides, model=str(MODEL_DIR))


def test_a_split_run_is_recorded_evaluated_and_begun_again(tmp_path: Path) -> None:
    wanted = split_config(tmp_path)
    record = train(wanted)
    folder = wanted.folder
    assert read_record(folder) == record
    assert record.measured is not None and record.metrics is not None and record.split is not None
    assert record.measured.steps == record.split["rounds"] == 3
    assert (record.split["clients"], record.split["cut"], record.split["average_every"]) == (2, 2, 2)
    assert record.split["rows"] == [18, 18]
    assert record.split["bytes"]["activations"] == record.split["bytes"]["gradients"] > 0
    assert record.split["bytes"]["matrices_up"] == record.split["bytes"]["matrices_down"] > 0
    assert any("split at block 2 over 2 clients" in notice for notice in record.notices)
    assert {block["mode"] for block in record.plan["blocks"]} == {"lora"}
    assert record.metrics.before != record.metrics.after
    assert read_card(folder).base_fingerprint == record.model.fingerprint
    assert sum(p.numel() for p in load(folder).parameters()) == record.total_parameters
    again = evaluate_target(str(folder), max_length=24, precision="float32")
    assert again.metrics["loss"] == pytest.approx(record.metrics.after["loss"], abs=1e-5)

    with pytest.raises(UserError, match=r"^the run in \S+ is finished: there is nothing to resume$"):
        train(wanted, resume=True)
    write_record(record.model_copy(update={"status": "failed"}), folder)
    begun_again = train(wanted, resume=True)
    assert begun_again.metrics is not None and begun_again.metrics.after == record.metrics.after
    assert begun_again.measured is not None and begun_again.measured.steps == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("save_every=2", "save_every: strategy 'splitlora' trains in parts, which goes without: leave it out"),
        ("optimizer=flora", "optimizer: strategy 'splitlora' goes with adamw or sgd, not with flora"),
        ("strategy_options.cut=8", "strategy 'splitlora': cut: 8 of 8 blocks leaves none to the server"),
        ("strategy_options.clients=100", "clients: 36 training rows are too few for 100 clients"),
        ("activation_cache=on", "activation_cache: on, but nothing is frozen"),
    ],
)
def test_what_a_split_run_refuses_in_one_line(tmp_path: Path, given: str, message: str) -> None:
    wanted = split_config(tmp_path, given)
    with pytest.raises(UserError, match=f"^{message}") as told:
        train(wanted)
    assert "\n" not in str(told.value)
    assert not (wanted.folder / RECORD_FILE).exists()
