"""`frostline plan`: what an activation cache and label positions change in the predicted cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.main import main
from tiny_files import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plan") / "model")


def planned(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> Any:
    assert main(["plan", str(model), "--strategy", "bot50", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_settings_become_the_workload(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    plain = planned(capsys, model)
    given = planned(
        capsys, model, "activation_cache=true", "stored_share=0.5", "loss_positions=true", "label_share=0.25"
    )
    assert (
        plain["assumes"] | {"activation_cache": True, "stored_share": 0.5, "loss_positions": True, "label_share": 0.25}
        == (given["assumes"])
    )
    assert (plain["assumes"]["activation_cache"], plain["assumes"]["loss_positions"]) == (False, False)
    for ratio in ("flops_ratio", "run_flops_ratio", "memory_ratio", "peak_memory_bytes"):
        assert given["predicted"][ratio] < plain["predicted"][ratio]
    assert given["predicted"].keys() == plain["predicted"].keys()


def test_the_estimate_is_shown(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["plan", str(model), "--strategy", "bot50", "num_train_epochs=1"]) == 0
    assert "it saves nothing at one epoch" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("wrong", ["label_share=0", "label_share=1.5", "stored_share=-1"])
def test_shares_are_shares(capsys: pytest.CaptureFixture[str], model: Path, wrong: str) -> None:
    assert main(["plan", str(model), "--strategy", "bot50", wrong]) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err
