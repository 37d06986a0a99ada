"""A run that trains by FLORA: its options, its record, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_training import config, places  # noqa: F401

from frostline.core.errors import UserError
from frostline.engine import Flora
from frostline.run import train
from frostline.run._prepare import prepare, read_data


@pytest.mark.usefixtures("places")
def test_the_options_reach_the_optimizer_and_the_prediction(tmp_path: Path) -> None:
    given = "optim=flora", "optim_args.rank=4", "gradient_accumulation_steps=2", "weight_decay=0.1", "max_steps=2"
    wanted = config(tmp_path, *given, strategy="bot50", seed=7)
    made = prepare(wanted, read_data(wanted)).trainer.create_optimizer()
    assert isinstance(made, Flora)
    assert {(group["rank"], group["seed"], group["kappa"]) for group in made.param_groups} == {(4, 7, 1000)}
    assert {group["weight_decay"] for group in made.param_groups} == {0.0, 0.1}
    record = train(wanted)
    assert record.config["optim_args"]["rank"] == 4
    memory = record.predicted["memory_bytes"]
    assert 0 < memory["optimizer"] < 4 * record.trainable_parameters
    assert 0 < memory["gradients"] < 4 * record.trainable_parameters
    assert all(entry["grad_norm"] > 0 for entry in record.metrics.history if "loss" in entry)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim_args.rank=4"], "optim_args: adamw_torch_fused does not read 'rank'"),
        (["optim=flora", "optim_args.rank=0"], "optim_args: rank: it should be greater than 0"),
        (["optim=flora", "optim_args.rnk=4"], "did you mean 'rank'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, *given)
